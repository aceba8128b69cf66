"""Which files of a folder hold its weights. Repositories keep copies (fp32 beside bf16, consolidated.*, original/,
onnx/, pickles); exactly one set is counted, the one transformers or diffusers would load, and the rest is named.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Format = Literal["safetensors", "gguf", "pickle", "none"]

#: The file stems transformers, diffusers and peft write, in the order they look for them.
_STEMS = ("model", "diffusion_pytorch_model", "adapter_model")
_PICKLE_STEMS = ("pytorch_model", "diffusion_pytorch_model", "adapter_model")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>\.(safetensors|gguf))$")
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".npz", ".tflite", ".mlmodel")  # fmt: skip
#: Small pickles that trainers leave beside the weights and nobody loads as such.
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state|trainer_state).*\.(bin|pt|pth)$")
#: llama.cpp's and Ollama's own default, when a repository offers many quantizations of one model.
_GGUF_DEFAULT = "q4_k_m"


@dataclass(frozen=True)
class Layout:
    """The set of files to count in one folder: shards and, where there is one, the index that names them."""

    format: Format
    files: tuple[str, ...] = ()
    index: str | None = None


def choose(files: Mapping[str, int], folder: str = "") -> Layout:
    """The weights of ``folder`` (the repository's root by default).

    Args:
        files: every file of the repository with its size in bytes.
        folder: ``unet``, ``text_encoder`` … for a part of a pipeline.
    """
    here = [path for path in files if posixpath.dirname(path) == folder]
    return (
        _safetensors(here, files, folder)
        or _gguf(here, files)
        or _pickle(here, folder)
        or (_gguf(list(files), files) if not folder else None)
        or Layout("none")
    )


def _safetensors(here: list[str], files: Mapping[str, int], folder: str) -> Layout | None:
    present = set(here)
    for stem in _STEMS:
        single, index = (
            posixpath.join(folder, f"{stem}{suffix}") for suffix in (".safetensors", ".safetensors.index.json")
        )
        if single in present:
            return Layout("safetensors", (single,))
        if index in present:
            return Layout("safetensors", (), index)
    for stem in _STEMS:  # only a variant is there: model.fp16.safetensors, model.safetensors.index.fp16.json
        pattern = re.compile(
            re.escape(posixpath.join(folder, stem)) + r"\.(safetensors\.index\.\w+\.json|\w+\.safetensors)$"
        )
        variants = sorted(path for path in here if pattern.match(path) and "-of-" not in path)
        if variants:
            path = variants[0]
            return Layout("safetensors", (), path) if path.endswith(".json") else Layout("safetensors", (path,))
    loose = [path for path in here if path.endswith(".safetensors")]
    if not loose:
        return None
    return Layout("safetensors", _largest_group(loose, files))


def _gguf(candidates: list[str], files: Mapping[str, int]) -> Layout | None:
    # mmproj-*.gguf is the vision tower that llama.cpp keeps in a file of its own, not the model.
    models = [path for path in candidates if path.endswith(".gguf") and "mmproj" not in path.lower()]
    if not models:
        return None
    preferred = [path for path in models if _GGUF_DEFAULT in path.lower()]
    return Layout("gguf", _largest_group(preferred or models, files))


def _pickle(here: list[str], folder: str) -> Layout | None:
    for stem in _PICKLE_STEMS:
        single, index = (posixpath.join(folder, f"{stem}{suffix}") for suffix in (".bin", ".bin.index.json"))
        if index in here:
            return Layout("pickle", (), index)
        if single in here:
            return Layout("pickle", (single,))
    return None


def _largest_group(paths: Iterable[str], files: Mapping[str, int]) -> tuple[str, ...]:
    """The shards that belong together (``-00001-of-00004``) or the one file that weighs most."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        shard = _SHARD.match(path)
        key = f"{shard['stem']}-of-{shard['count']}{shard['rest']}" if shard else path
        groups.setdefault(key, []).append(path)
    best = max(groups.values(), key=lambda group: (sum(files[path] for path in group), group))
    return tuple(sorted(best))


def missing_shards(files: Sequence[str]) -> tuple[str, ...]:
    """Names that shards' own numbering (``-00001-of-00003``) says must be there and are not."""
    shard = _SHARD.match(files[0]) if files else None
    if shard is None:
        return ()
    count = int(shard["count"])
    names = (f"{shard['stem']}-{number:05d}-of-{shard['count']}{shard['rest']}" for number in range(1, count + 1))
    return tuple(name for name in names if name not in files)


def leftovers(files: Mapping[str, int], counted: Sequence[str], folder: str = "") -> str:
    """What was counted and what weights of the folder were not, for people; empty when there was nothing to choose."""
    prefix = f"{folder}/" if folder else ""
    others = [
        path
        for path in files
        if path.startswith(prefix) and path.endswith(_WEIGHTS) and path not in counted and not _NOT_WEIGHTS.search(path)
    ]
    if not others or not counted:
        return ""
    first = counted[0] if len(counted) == 1 else f"{counted[0]} and {len(counted) - 1} more"
    return f"counted {first}; not counted: {_summary(others, prefix)}"


def _summary(paths: list[str], prefix: str) -> str:
    folders = Counter(
        path.removeprefix(prefix).split("/")[0] + "/" for path in paths if "/" in path.removeprefix(prefix)
    )
    names = [path.removeprefix(prefix) for path in paths if "/" not in path.removeprefix(prefix)]
    parts = [*names[:4], *([f"{len(names) - 4} more files"] if len(names) > 4 else [])]
    parts += [f"{folder} ({count} {'file' if count == 1 else 'files'})" for folder, count in folders.most_common(4)]
    return ", ".join(parts)
