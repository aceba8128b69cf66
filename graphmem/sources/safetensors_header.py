"""The header of a safetensors file: read by range, checked as strictly as safetensors itself checks it.

The format (https://huggingface.co/docs/safetensors/index#format): a little-endian u64 N, N bytes of JSON that give each
tensor's dtype, shape and byte range, then the data. What the safetensors package accepts and rejects is the reference;
a property test compares the two.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NoReturn

from graphmem.checkpoint import TensorSpec
from graphmem.dtypes import SAFETENSORS
from graphmem.errors import CheckpointError
from graphmem.sources.repository import Repository

MAX_HEADER_BYTES = 100_000_000
_MAX_U64 = 2**64 - 1
_LENGTH_BYTES = 8
_FIRST_READ = 65_536
_AGAIN = "download the file again or save it anew with safetensors"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_header(repository: Repository, path: str, expected: int = 0) -> list[TensorSpec]:
    """The tensors of one safetensors file, from its header alone.

    Args:
        expected: about how many header bytes to ask for at first, where an index has told the names; one read then
            nearly always holds the whole header.

    Raises:
        CheckpointError: the header breaks the format; the message names the file and the tensor or key.
    """
    size = repository.files[path]
    if size < _LENGTH_BYTES:
        raise CheckpointError(f"{path}: {size} bytes is too short for a safetensors file; {_AGAIN}")
    data = repository.read(path, 0, min(size, max(expected, _FIRST_READ)))
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: header length {length:,} is over the format's limit of {MAX_HEADER_BYTES:,} bytes: "
            f"not a safetensors file, or a corrupt one; {_AGAIN}"
        )
    end = _LENGTH_BYTES + length
    if end > size:
        raise CheckpointError(
            f"{path}: header length {length:,} runs past the end of the file ({size:,} bytes): truncated; {_AGAIN}"
        )
    if end > len(data):
        data += repository.read(path, len(data), end)
    return parse_header(data[_LENGTH_BYTES:end], size - end, path)


def parse_header(header: bytes, data_bytes: int, file: str) -> list[TensorSpec]:
    """The tensors a header describes, in the order of the header.

    Args:
        header: the JSON bytes, without the length.
        data_bytes: bytes after the header; the tensors must cover them exactly.
        file: name for messages and for ``TensorSpec.file``.

    Raises:
        CheckpointError: as `read_header`.
    """
    if not header:
        raise CheckpointError(f"{file}: header length is zero: no tensors and no JSON; {_AGAIN}")
    entries = _decode(header, file)
    tensors: list[TensorSpec] = []
    ranges: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        tensor, start, stop = _entry(name, entry, file)
        tensors.append(tensor)
        ranges.append((start, stop, name))
    _check_cover(ranges, data_bytes, file)
    return tensors


class _Pairs(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    repeated: tuple[str, ...] = ()

    @classmethod
    def of(cls, pairs: list[tuple[str, Any]]) -> _Pairs:
        result = cls(pairs)
        if len(result) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            result.repeated = tuple(key for key, count in counts.items() if count > 1)
        return result


def _decode(header: bytes, file: str) -> dict[str, Any]:
    def fail(why: str) -> NoReturn:
        raise CheckpointError(f"{file}: the header is not valid JSON ({why}); {_AGAIN}")

    def integer(digits: str) -> int | float:
        return -0.0 if digits == "-0" else int(digits)  # serde reads -0 as a float, and so refuses it as a size

    try:
        entries = json.loads(
            header.decode("utf-8"), object_pairs_hook=_Pairs.of, parse_constant=fail, parse_int=integer
        )
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: the header is not UTF-8 at byte {error.start}; {_AGAIN}") from error
    except json.JSONDecodeError as error:
        fail(f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        fail(str(error))
    if not isinstance(entries, _Pairs):
        fail(f"an object is expected, found {type(entries).__name__}")
    if "__metadata__" in entries.repeated:
        fail("duplicate key '__metadata__'")
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and (
        not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values())
    ):
        fail("'__metadata__' must map strings to strings")
    if b"\\u" in header and _LONE_SURROGATE.search(json.dumps([entries, metadata], ensure_ascii=False)):
        fail("a lone surrogate in a string")
    # A name that comes twice keeps its last entry, as in safetensors; a hole or an overlap then gives it away below.
    return entries


def _entry(name: str, entry: Any, file: str) -> tuple[TensorSpec, int, int]:
    def fail(why: str) -> NoReturn:
        raise CheckpointError(f"{file}: tensor {name!r}: {why}; {_AGAIN}")

    if not isinstance(entry, _Pairs):
        fail(f"an object with dtype, shape and data_offsets is expected, found {type(entry).__name__}")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in entry:
            fail(f"{key} is missing")
        if key in entry.repeated:
            fail(f"duplicate key {key!r}")
    dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = SAFETENSORS.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise CheckpointError(
            f"{file}: tensor {name!r}: unknown dtype {dtype_name!r}; known are {', '.join(SAFETENSORS)}. "
            "If it is new in safetensors, upgrade graphmem"
        )
    if not isinstance(shape, list) or not all(_is_size(dim) for dim in shape):
        fail(f"shape {shape!r} must be a list of whole numbers from 0 to 2^64 - 1")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        fail(f"data_offsets {offsets!r} must be two whole numbers from 0 to 2^64 - 1")
    elements = 1
    for dim in shape:
        elements *= dim
        if elements > _MAX_U64:
            fail(f"shape {shape} overflows 64 bits")
    if elements * int(dtype.bits) > _MAX_U64:
        fail(f"shape {shape} as {dtype} overflows 64 bits")
    start, stop = offsets
    if elements % dtype.block_elements:
        fail(f"shape {shape} as {dtype} ({int(dtype.bits)} bits an element) does not end on a whole byte")
    if stop < start:
        fail(f"data_offsets {offsets} end before they begin")
    if stop - start != dtype.nbytes(elements):
        fail(f"shape {shape} as {dtype} takes {dtype.nbytes(elements):,} bytes but data_offsets span {stop - start:,}")
    return TensorSpec(name, tuple(shape), dtype, file=file), start, stop


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_U64


def _check_cover(ranges: list[tuple[int, int, str]], data_bytes: int, file: str) -> None:
    """Byte ranges must follow one another from 0 to the end of the file: no hole, no overlap, nothing after."""
    position, previous = 0, ""
    for start, stop, name in sorted(ranges):
        if start != position:
            what = "a hole" if start > position else "an overlap"
            after = f" after {previous!r}" if previous else " at the start of the data"
            raise CheckpointError(
                f"{file}: tensor {name!r} begins at byte {start:,} where {position:,} is expected: {what}{after}; {_AGAIN}"
            )
        position, previous = stop, name
    if position < data_bytes:
        raise CheckpointError(f"{file}: {data_bytes - position:,} bytes after the last tensor belong to none; {_AGAIN}")
    if position > data_bytes:
        raise CheckpointError(
            f"{file}: the tensors need {position:,} bytes of data, the file holds {data_bytes:,}: truncated; {_AGAIN}"
        )
