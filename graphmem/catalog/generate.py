"""``python -m graphmem.catalog.generate [ID …]``: rebuild the tensor tables of catalog entries from their facts.

An entry (``models/<owner>--<name>.json``) is written by hand but for its ``tensors``: the config's values, how the release is
stored, and published totals with their sources. The table comes from building the model on the meta device; what a release has
beyond its class (DeepSeek-V3's extra prediction layer, GPT-2's saved masks) is listed in the entry under ``also`` and ``copy``. Needs
the dev extra.
"""

from __future__ import annotations

import fnmatch
import json
import re
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphmem.catalog.table import compress, expand
from graphmem.checkpoint import TensorSpec
from graphmem.dtypes import SAFETENSORS
from graphmem.sources.build import build_model, class_defaults
from graphmem.sources.built_spec import checkpoint_tensors

if TYPE_CHECKING:
    import torch

_MODELS = Path(str(files("graphmem.catalog"))) / "models"


def main(ids: list[str]) -> None:
    """Rewrite the entries with these ids (all by default), and the list of aliases."""
    aliases: dict[str, str] = {}
    for path in sorted(_MODELS.glob("*.json")):
        entry = json.loads(path.read_text())
        aliases.update({alias.lower(): entry["id"] for alias in entry.get("aliases", [])})
        if ids and entry["id"] not in ids:
            continue
        for part in (entry.get("components") or {"": entry}).values():
            model = build_model(part["config"], class_path=part.get("class"))
            part.pop("defaults", None)
            if defaults := class_defaults(part["config"], model):
                part["defaults"] = defaults
            part["tensors"] = compress(tensors_of(part, model))
        path.write_text(_dump(entry))
        print(entry["id"], file=sys.stderr)
    (_MODELS.parent / "aliases.json").write_text(json.dumps(aliases, indent=1, sort_keys=True) + "\n")


def tensors_of(facts: Mapping[str, Any], model: torch.nn.Module) -> list[TensorSpec]:
    """The stored tensors that an entry's facts describe, ``model`` being built from its config."""
    tensors: dict[str, TensorSpec] = {}
    for built in checkpoint_tensors(model):
        name = built.name.removeprefix(facts.get("strip", ""))
        if not any(fnmatch.fnmatchcase(name, glob) for glob in facts.get("without", ())):
            tensors[name] = TensorSpec(name, built.shape, SAFETENSORS[_dtype(name, facts)])
    for target, source in facts.get("copy", {}).items():
        for original in [tensor for name, tensor in tensors.items() if name.startswith(source)]:
            name = target + original.name.removeprefix(source)
            tensors[name] = TensorSpec(name, original.shape, original.dtype)
    for tensor in expand(facts.get("also", ())):
        tensors[tensor.name] = tensor
    return list(tensors.values())


def _dtype(name: str, facts: Mapping[str, Any]) -> str:
    dtype: str = facts["dtype"]
    for glob, other in facts.get("dtypes", {}).items():
        if fnmatch.fnmatchcase(name, glob):
            dtype = other
    return dtype


def _dump(entry: Mapping[str, Any]) -> str:
    """JSON with one line a tensor and a list, so that a diff shows what changed."""
    text = json.dumps(entry, indent=1)
    inner = re.compile(r"\[\s*([^\[\]{}]*?)\s*\]")
    text = inner.sub(lambda match: "[" + re.sub(r"\s*\n\s*", " ", match[1]) + "]", text)
    row = re.compile(r"\[\s*(\"[^\"]*\"),\s*(\[[^\[\]]*\]),\s*(\"\w+\")\s*\]")
    return row.sub(r"[\1, \2, \3]", text) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
