"""One folder of a repository → one ModelSpec: pick the weights, read their headers, hold them against the index."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphmem.checkpoint import ModelSpec, TensorSpec
from graphmem.config import text_config
from graphmem.errors import CheckpointError, MissingExtraError, TargetError, UnsupportedError
from graphmem.sources.gguf_config import config_of
from graphmem.sources.gguf_header import read_gguf
from graphmem.sources.index import Index, read_index, total_size_warning
from graphmem.sources.jsonfile import read_object
from graphmem.sources.layout import Layout, choose, leftovers, missing_shards
from graphmem.sources.repository import Progress, Repository, map_concurrently
from graphmem.sources.safetensors_header import read_header

#: A header entry is the tensor's name and about this much JSON around it.
_ENTRY_BYTES = 96
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass
class Findings:
    """What reading turned up beside the numbers: choices made, and things that look wrong."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    #: Files whose tensors were counted.
    counted: list[str] = field(default_factory=list)


def read_model(
    repository: Repository, findings: Findings, folder: str = "", name: str = "", progress: Progress | None = None
) -> ModelSpec:
    """The model stored in ``folder``.

    Raises:
        CheckpointError: a file breaks its format.
        TargetError: the folder holds nothing a model could be read from.
        MissingExtraError: only a config or a pickle is there, and building the model needs the torch extra.
    """
    layout = choose(repository.files, folder)
    config = _config(repository, folder)
    if layout.format == "gguf":
        spec = _read_gguf(repository, layout, name, findings)
    elif layout.format == "pickle":
        spec = _read_pickle(repository, layout, config, name, findings)
    elif layout.format == "none":
        spec = _from_config(repository, folder, config, name, findings)
    else:
        spec = _read_safetensors(repository, layout, config, name, findings, progress)
    if left := leftovers(repository.files, findings.counted, folder):
        findings.notes.append(left)
    return spec


def read_file(repository: Repository, path: str, findings: Findings) -> ModelSpec:
    """One named weight file (or index) of a repository, with the config beside it."""
    folder = posixpath.dirname(path)
    if path.endswith(_PICKLES):
        raise TargetError(
            f"{path}: a pickle, which graphmem never opens; point at its folder: shapes then come from the config"
        )
    if path.endswith(".gguf"):
        return _read_gguf(repository, Layout("gguf", (path,)), "", findings)
    if path.endswith(".json") and not path.endswith(".index.json"):
        return _from_config(repository, folder, read_object(repository, path), "", findings)
    if not path.endswith((".safetensors", ".safetensors.index.json", ".bin.index.json")):
        raise TargetError(
            f"{path}: graphmem reads .safetensors, .gguf, *.safetensors.index.json, *.bin.index.json and config.json"
        )
    config = _config(repository, folder)
    if path.endswith(".safetensors"):
        return ModelSpec(tuple(read_header(repository, path)), config)
    if path.endswith(".safetensors.index.json"):
        return _read_safetensors(repository, Layout("safetensors", (), path), config, "", findings, None)
    return _read_pickle(repository, Layout("pickle", (), path), config, "", findings)


def _config(repository: Repository, folder: str) -> dict[str, Any]:
    """config.json, with a quantization kept in a file of its own (hf_quant_config.json, quantize_config.json) put in."""
    config: dict[str, Any] = {}
    path = posixpath.join(folder, "config.json")
    if path in repository.files:
        config = read_object(repository, path)
    if "quantization_config" in config or "quantization_config" in text_config(config):
        return config
    modelopt, autogptq = (posixpath.join(folder, name) for name in ("hf_quant_config.json", "quantize_config.json"))
    if modelopt in repository.files:
        quantization = read_object(repository, modelopt).get("quantization", {})
        config["quantization_config"] = {"quant_method": "modelopt", **quantization}
    elif autogptq in repository.files:
        config["quantization_config"] = {"quant_method": "gptq", **read_object(repository, autogptq)}
    return config


def _read_safetensors(
    repository: Repository,
    layout: Layout,
    config: Mapping[str, Any],
    name: str,
    findings: Findings,
    progress: Progress | None,
) -> ModelSpec:
    index = read_index(repository, layout.index) if layout.index else None
    files = index.files if index else layout.files
    missing = [path for path in files if path not in repository.files] if index else missing_shards(files)
    if index and len(missing) == len(files):  # the index alone, as people commit it: shapes come from the model's code
        return _from_index(index, config, name, findings)
    _refuse_missing(missing, layout.index or files[0])
    expected = _header_sizes(index) if index else {}
    headers = map_concurrently(
        lambda path: read_header(repository, path, expected.get(path, 0)), files, repository.workers, progress
    )
    tensors = _merge(headers)
    findings.counted.extend(files)
    if index:
        _compare_with_index(index, tensors, findings)
    return ModelSpec(tuple(tensors.values()), config, name)


def _header_sizes(index: Index) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor, shard in index.shards.items():
        sizes[shard] = sizes.get(shard, 256) + len(tensor) + _ENTRY_BYTES
    return sizes


def _merge(headers: list[list[TensorSpec]]) -> dict[str, TensorSpec]:
    tensors: dict[str, TensorSpec] = {}
    for header in headers:
        for tensor in header:
            if other := tensors.get(tensor.name):
                raise CheckpointError(
                    f"tensor {tensor.name!r} is in two shards, {other.file} and {tensor.file}: which one counts cannot be told; "
                    "save the checkpoint anew"
                )
            tensors[tensor.name] = tensor
    return tensors


def _compare_with_index(index: Index, tensors: Mapping[str, TensorSpec], findings: Findings) -> None:
    if warning := total_size_warning(index, sum(tensor.nbytes for tensor in tensors.values())):
        findings.warnings.append(warning)
    absent = [name for name in index.shards if name not in tensors]
    if absent:
        findings.warnings.append(f"{index.path}: lists {len(absent)} tensors no shard holds, first {absent[0]!r}")
    unlisted = [name for name in tensors if name not in index.shards]
    if unlisted:
        findings.warnings.append(
            f"{index.path}: does not list {len(unlisted)} tensors the shards hold, first {unlisted[0]!r}"
        )


def _refuse_missing(missing: Sequence[str], file: str) -> None:
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{file}: shard {missing[0]!r} is missing{more}; download it, or the whole checkpoint, again"
        )


def _read_gguf(repository: Repository, layout: Layout, name: str, findings: Findings) -> ModelSpec:
    _refuse_missing(missing_shards(layout.files), layout.files[0])
    findings.counted.extend(layout.files)
    parts = map_concurrently(lambda path: read_gguf(repository, path), layout.files, repository.workers)
    tensors = _merge([tensors for _, tensors in parts])
    return ModelSpec(tuple(tensors.values()), config_of(parts[0][0]), name)


def _read_pickle(
    repository: Repository, layout: Layout, config: Mapping[str, Any], name: str, findings: Findings
) -> ModelSpec:
    if layout.index:
        return _from_index(read_index(repository, layout.index), config, name, findings)
    path = layout.files[0]
    if posixpath.basename(path).startswith("adapter_model"):
        raise UnsupportedError(f"{path}: the adapter is a pickle, which graphmem never opens; save it as safetensors")
    findings.counted.append(path)
    findings.notes.append(
        f"{path}: a pickle, never opened ({repository.files[path]:,} bytes on disk); shapes come from building the model"
    )
    return _build(config, None, name, path, findings)


def _from_index(index: Index, config: Mapping[str, Any], name: str, findings: Findings) -> ModelSpec:
    """An index whose weights are absent or pickled: its names, its total, and shapes from the model's own code.

    Where the model cannot be built the total is still known, and is all that is reported.
    """
    try:
        spec = _build(config, index, name, index.path, findings)
    except (UnsupportedError, MissingExtraError) as error:
        declared = index.declared_bytes()
        if declared is None:
            raise
        findings.warnings.append(f"only the total of {len(index.shards)} tensors is known: {error}")
        return ModelSpec((), config, name, "read", declared_bytes=declared, declared_by=index.path)
    findings.notes.append(f"{index.path}: tensor names as listed; shapes come from building the model")
    return spec


def _from_config(
    repository: Repository, folder: str, config: Mapping[str, Any], name: str, findings: Findings
) -> ModelSpec:
    if not config:
        held = ", ".join(list(repository.files)[:5]) or "nothing"
        raise TargetError(
            f"{repository.name}{f'/{folder}' if folder else ''}: no model here: neither weights (safetensors, GGUF, a pickle index) "
            f"nor a config.json; it holds {held}"
        )
    findings.notes.append("no weights here: shapes come from building the model that config.json describes")
    return _build(config, None, name, "config.json", findings)


def _build(config: Mapping[str, Any], index: Index | None, name: str, file: str, findings: Findings) -> ModelSpec:
    from graphmem.sources.built_spec import build_spec

    return build_spec(config, index, name, file, findings)
