"""The built-in catalog: well-known models as facts shipped in the wheel, so that the tool answers without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from graphmem.catalog.table import expand
from graphmem.checkpoint import Checkpoint, ModelSpec
from graphmem.config import with_defaults

_ROOT = files("graphmem.catalog")
_MODELS = _ROOT / "models"


def catalog_ids() -> list[str]:
    """The ids the catalog has, sorted."""
    names = (path.name for path in _MODELS.iterdir())
    return sorted(name.removesuffix(".json").replace("--", "/", 1) for name in names if name.endswith(".json"))


def find(repo_id: str) -> str | None:
    """The catalog's spelling of ``repo_id`` (any case, former names too), or None if it has no such model."""
    if (_MODELS / _file(repo_id)).is_file():
        return repo_id
    aliases: dict[str, str] = json.loads((_ROOT / "aliases.json").read_text())
    wanted = repo_id.lower()
    return aliases.get(wanted) or next((id for id in catalog_ids() if id.lower() == wanted), None)


def read_catalog(repo_id: str, reason: str) -> Checkpoint:
    """The entry of ``repo_id`` (as `find` spells it). ``reason`` is why the catalog answers and not the Hub."""
    entry = json.loads((_MODELS / _file(repo_id)).read_text())
    parts: dict[str, Any] = entry.get("components") or {"": entry}
    sections = tuple(
        ModelSpec(tuple(expand(part["tensors"])), _config(part), name, "built") for name, part in parts.items()
    )
    checks = [_verification(spec, parts[spec.name]) for spec in sections]
    notes = tuple(f"{spec.name}: {text}" if spec.name else text for spec, text in zip(sections, checks, strict=True))
    return Checkpoint(repo_id, f"built-in catalog ({reason}): shapes built from the published config", sections, notes)


def _config(part: Mapping[str, Any]) -> dict[str, Any]:
    """The published config, with what it leaves to its class filled in."""
    config = with_defaults(part["config"], part["defaults"]) if "defaults" in part else dict(part["config"])
    library, _, name = part.get("class", "").rpartition(".")
    return {"_class_name": name, **config} if library == "diffusers" else config


def _verification(spec: ModelSpec, part: Mapping[str, Any]) -> str:
    """How the entry's total stands against figures others published; an unverified total says so."""
    published = part.get("published", [])
    for fact in published:
        source = f"{fact['of']}; {fact['source']}"
        if "bytes" in fact:
            return _compared(spec.nbytes, fact["bytes"], "bytes", source)
        if "parameters" in fact:
            elements = sum(tensor.elements for tensor in spec.tensors)
            return _compared(
                elements, fact["parameters"], "stored elements (scales and buffers are among them)", source
            )
    for fact in published:
        if "file_bytes" in fact and 0 < fact["file_bytes"] - spec.nbytes < 200 * (len(spec.tensors) + 10):
            return (
                f"total consistent with {fact['file_bytes']:,} bytes, headers included: {fact['of']}; {fact['source']}"
            )
    return "total not verified: no published figure to hold it against"


def _compared(ours: int, theirs: int, unit: str, source: str) -> str:
    if ours == theirs:
        return f"total verified against {theirs:,} {unit}: {source}"
    return f"total not verified: {ours:,} {unit} here, {theirs:,} published: {source}"


def _file(repo_id: str) -> str:
    return repo_id.replace("/", "--") + ".json"
