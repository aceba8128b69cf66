"""The built-in catalog: well-known models as facts shipped in the wheel, so that the tool answers without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from graphmem.catalog.table import expand
from graphmem.checkpoint import Checkpoint, ModelSpec

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
        ModelSpec(tuple(expand(part["tensors"])), part["config"], name, "built") for name, part in parts.items()
    )
    checks = [_verification(spec, parts[spec.name]) for spec in sections]
    notes = tuple(f"{spec.name}: {text}" if spec.name else text for spec, text in zip(sections, checks, strict=True))
    return Checkpoint(repo_id, f"built-in catalog ({reason}): shapes built from the published config", sections, notes)


def _verification(spec: ModelSpec, part: Mapping[str, Any]) -> str:
    """How the entry's total stands against figures others published; an unverified total says so."""
    published = part.get("published", [])
    for fact in published:
        source = f"{fact['of']} ({fact['source']})"
        if "bytes" in fact:
            return _compared(spec.nbytes, fact["bytes"], "bytes", source)
        if "parameters" in fact:
            return _compared(
                sum(tensor.elements for tensor in spec.tensors), fact["parameters"], "stored elements", source
            )
    for fact in published:
        if "file_bytes" in fact and 0 < fact["file_bytes"] - spec.nbytes < 200 * (len(spec.tensors) + 10):
            return f"total consistent with the file size of {fact['of']} ({fact['source']}): {fact['file_bytes']:,} bytes with headers"
    return "total not verified: no published figure to hold it against"


def _compared(ours: int, theirs: int, unit: str, source: str) -> str:
    if ours == theirs:
        return f"total verified, {theirs:,} {unit}: {source}"
    return f"total not verified: {ours:,} {unit} here, {theirs:,} published: {source}"


def _file(repo_id: str) -> str:
    return repo_id.replace("/", "--") + ".json"
