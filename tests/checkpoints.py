"""Checkpoint files for tests: genuine headers, holes where gigabytes of weights would be."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphmem.checkpoint import TensorSpec


@dataclass(frozen=True)
class SparseFile:
    """``head`` is really there; the rest up to ``size`` reads as zeros."""

    head: bytes
    size: int

    def read(self, start: int, stop: int) -> bytes:
        stop = min(stop, self.size)
        piece = self.head[start:stop]
        return piece + bytes(max(0, stop - max(start, len(self.head)))) if stop > start else b""

    def write(self, path: Path) -> None:
        """Put it on disk without taking the room."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(self.head)
            file.truncate(self.size)


def header_of(tensors: Iterable[TensorSpec], metadata: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """(JSON header, bytes of data) as safetensors would write them."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype.name,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8), at


def safetensors_file(tensors: Iterable[TensorSpec]) -> SparseFile:
    """A safetensors file whose weights are a hole."""
    header, data = header_of(tensors, {"format": "pt"})
    return SparseFile(struct.pack("<Q", len(header)) + header, 8 + len(header) + data)


def raw_file(header: bytes, data: int = 0, length: int | None = None) -> SparseFile:
    """A file with exactly this header, however wrong; ``length`` overrides the length field."""
    return SparseFile(struct.pack("<Q", len(header) if length is None else length) + header, 8 + len(header) + data)


def sharded(tensors: Iterable[TensorSpec], shards: int, total_size: Any = None) -> dict[str, bytes | SparseFile]:
    """Tensors dealt over ``shards`` files with their index, by the names transformers gives them."""
    tensors = list(tensors)
    per = -(-len(tensors) // shards)
    files: dict[str, bytes | SparseFile] = {}
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = tensors[number * per : (number + 1) * per]
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        files[name] = safetensors_file(part)
        weight_map.update({tensor.name: name for tensor in part})
    total = sum(tensor.nbytes for tensor in tensors) if total_size is None else total_size
    files["model.safetensors.index.json"] = json.dumps(
        {"metadata": {"total_size": total}, "weight_map": weight_map}
    ).encode()
    return files


def write_all(folder: Path, files: Mapping[str, bytes | SparseFile]) -> Path:
    """Put files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, SparseFile):
            content.write(path)
        else:
            path.write_bytes(content)
    return folder


def gguf_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
