"""The header of a GGUF file: key-values and tensor descriptions, read by range in growing pieces.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package reads whole local files only, so
the reader is ours; a test holds it against that package.
"""

from __future__ import annotations

import struct
from typing import Any

from graphmem.checkpoint import TensorSpec
from graphmem.dtypes import GGML
from graphmem.errors import CheckpointError, UnsupportedError
from graphmem.sources.repository import Repository

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
#: A tokenizer's vocabulary sits in the header, so the first piece is large; each next one doubles what is held.
_FIRST_READ = 1 << 20
#: No genuine header comes near this; a corrupt count must not read gigabytes.
_MAX_HEADER = 1 << 28
_MAX_DIMS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
#: Arrays longer than this (vocabularies, merges) are measured and skipped.
_KEEP_ARRAY = 4096


def read_gguf(repository: Repository, path: str) -> tuple[dict[str, Any], list[TensorSpec]]:
    """Key-values (long arrays become their length) and tensors, dims in PyTorch's order (outermost first).

    Raises:
        CheckpointError: the header breaks the format.
        UnsupportedError: a big-endian file, or a GGUF version or tensor type graphmem does not know.
    """
    return _Reader(repository, path).read()


class _Reader:
    """A cursor over the file that fetches more when it runs out."""

    def __init__(self, repository: Repository, path: str) -> None:
        self._repository, self._path = repository, path
        self._size = repository.files[path]
        self._data = b""
        self._at = 0

    def read(self) -> tuple[dict[str, Any], list[TensorSpec]]:
        if self._take(4) != _MAGIC:
            raise CheckpointError(f"{self._path}: does not begin with 'GGUF'; download the file again")
        version = self._number("I")
        if version not in _VERSIONS:
            if version & 0xFFFF == 0:
                raise UnsupportedError(f"{self._path}: a big-endian GGUF; convert it to little-endian")
            raise UnsupportedError(
                f"{self._path}: GGUF version {version}; known are {_VERSIONS}. Convert the file anew"
            )
        tensor_count, pair_count = self._number("Q"), self._number("Q")
        metadata = {}
        for _ in range(pair_count):
            key = self._string()
            metadata[key] = self._value(self._number("I"), key)
        return metadata, [self._tensor() for _ in range(tensor_count)]

    def _tensor(self) -> TensorSpec:
        name = self._string()
        count = self._number("I")
        if count > _MAX_DIMS:
            raise CheckpointError(
                f"{self._path}: tensor {name!r} has {count} dimensions; the header is corrupt, download it again"
            )
        shape = tuple(reversed([self._number("Q") for _ in range(count)]))
        type_id = self._number("I")
        self._number("Q")  # offset of the data
        if type_id not in GGML:
            raise UnsupportedError(f"{self._path}: tensor {name!r}: unknown GGML type {type_id}; upgrade graphmem")
        tensor = TensorSpec(name, shape, GGML[type_id], file=self._path)
        try:
            end = tensor.nbytes
        except ValueError as error:
            raise CheckpointError(
                f"{self._path}: tensor {name!r}: {error}; the header is corrupt, download it again"
            ) from error
        if end > self._size:
            raise CheckpointError(
                f"{self._path}: tensor {name!r} needs {end:,} bytes, the file holds {self._size:,}: truncated; download it again"
            )
        return tensor

    def _value(self, type_id: int, key: str) -> Any:
        if type_id in _SCALARS:
            return self._number(_SCALARS[type_id])
        if type_id == _STRING:
            return self._string()
        if type_id != _ARRAY:
            raise CheckpointError(f"{self._path}: key {key!r} has unknown value type {type_id}; the header is corrupt")
        item, count = self._number("I"), self._number("Q")
        if item in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[item])
            data = self._take(size * count)
            return list(struct.unpack(f"<{count}{_SCALARS[item]}", data)) if count <= _KEEP_ARRAY else count
        values = [self._value(item, key) for _ in range(count)]
        return values if count <= _KEEP_ARRAY else count

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8", errors="replace")

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            self._fetch(end)
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def _fetch(self, end: int) -> None:
        if end > self._size:
            raise CheckpointError(
                f"{self._path}: the header runs past the end of the file ({self._size:,} bytes): truncated; download it again"
            )
        if end > _MAX_HEADER:
            raise CheckpointError(f"{self._path}: the header is over {_MAX_HEADER:,} bytes: corrupt; download it again")
        have = len(self._data)
        stop = min(self._size, max(end, 2 * have, _FIRST_READ))
        self._data += self._repository.read(self._path, have, stop)
