"""The header reader against safetensors itself: what it accepts we accept, what it rejects we reject, by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from graphmem.dtypes import SAFETENSORS
from graphmem.errors import CheckpointError
from graphmem.sources.local import LocalFolder
from graphmem.sources.safetensors_header import MAX_HEADER_BYTES, parse_header, read_header
from tests.checkpoints import SparseFile, raw_file


def _entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> str:
    return json.dumps({"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)})


def _read(tmp_path: Path, file: SparseFile | bytes) -> Any:
    path = tmp_path / "x.safetensors"
    if isinstance(file, SparseFile):
        file.write(path)
    else:
        path.write_bytes(file)
    return read_header(LocalFolder(tmp_path), "x.safetensors")


ONE = _entry()
BAD: dict[str, tuple[SparseFile | bytes, str]] = {
    "seven bytes": (b"1234567", "7 bytes is too short for a safetensors file"),
    "length over 100 MB": (raw_file(b"{}", length=MAX_HEADER_BYTES + 1), "header length 100,000,001 is over the format's limit of 100,000,000 bytes"),
    "length 2^64 - 1": (raw_file(b"{}", length=2**64 - 1), "header length 18,446,744,073,709,551,615 is over the format's limit"),
    "length over the file": (raw_file(b"{}", length=1000), "header length 1,000 runs past the end of the file (10 bytes): truncated"),
    "length zero": (raw_file(b"", length=0), "header length is zero: no tensors and no JSON"),
    "invalid UTF-8": (raw_file(b'{"\xff":1}'), "the header is not UTF-8 at byte 2"),
    "invalid JSON": (raw_file(b'{"a":'), "the header is not valid JSON (Expecting value at column 6)"),
    "trailing NUL": (raw_file(b"{}\0"), "the header is not valid JSON (Extra data at column 3)"),
    "byte order mark": (raw_file(b"\xef\xbb\xbf{}"), "the header is not valid JSON"),
    "array": (raw_file(b"[]"), "the header is not valid JSON (an object is expected, found list)"),
    "NaN": (raw_file(b'{"a":NaN}'), "the header is not valid JSON (NaN)"),
    "lone surrogate": (raw_file(rb'{"\ud800":' + ONE.encode() + b"}", 4), "the header is not valid JSON (a lone surrogate in a string)"),
    "deep nesting": (raw_file(b'{"a":' * 100_000), "the header is not valid JSON"),
    "duplicate __metadata__": (raw_file(b'{"__metadata__":{},"__metadata__":{}}'), "duplicate key '__metadata__'"),
    "duplicate tensor leaves a hole": (
        raw_file(f'{{"a":{ONE},"a":{_entry(offsets=(4, 8))}}}'.encode(), 8),
        "tensor 'a' begins at byte 4 where 0 is expected: a hole at the start of the data",
    ),
    "duplicate dtype": (raw_file(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4), "tensor 'a': duplicate key 'dtype'"),
    "metadata not text": (raw_file(b'{"__metadata__":{"a":1}}'), "'__metadata__' must map strings to strings"),
    "unknown dtype": (raw_file(f'{{"a":{_entry("F8_E3M4")}}}'.encode(), 4), "tensor 'a': unknown dtype 'F8_E3M4'; known are BOOL, U8"),
    "lower-case dtype": (raw_file(f'{{"a":{_entry("f32")}}}'.encode(), 4), "tensor 'a': unknown dtype 'f32'"),
    "float dimension": (raw_file(f'{{"a":{_entry(shape=[1.0])}}}'.encode(), 4), "tensor 'a': shape [1.0] must be a list of whole numbers"),
    "boolean dimension": (raw_file(f'{{"a":{_entry(shape=[True])}}}'.encode(), 4), "tensor 'a': shape [True] must be a list of whole numbers"),
    "negative dimension": (raw_file(f'{{"a":{_entry(shape=[-1])}}}'.encode(), 4), "tensor 'a': shape [-1] must be a list of whole numbers"),
    "huge dimension": (raw_file(f'{{"a":{_entry(shape=[2**64])}}}'.encode(), 4), "must be a list of whole numbers from 0 to 2^64 - 1"),
    "product overflows": (raw_file(f'{{"a":{_entry(shape=[2**40, 2**40])}}}'.encode(), 4), "tensor 'a': shape [1099511627776, 1099511627776] overflows 64 bits"),
    "bits overflow": (raw_file(f'{{"a":{_entry(shape=[2**62])}}}'.encode(), 4), "as F32 overflows 64 bits"),
    "three offsets": (raw_file(f'{{"a":{_entry(offsets=[0, 4, 8])}}}'.encode(), 8), "tensor 'a': data_offsets [0, 4, 8] must be two whole numbers"),
    "offsets backwards": (raw_file(f'{{"a":{_entry(offsets=[4, 0])}}}'.encode(), 4), "tensor 'a': data_offsets [4, 0] end before they begin"),
    "offsets of another size": (raw_file(f'{{"a":{_entry(offsets=[0, 8])}}}'.encode(), 8), "takes 4 bytes but data_offsets span 8"),
    "hole": (
        raw_file(f'{{"a":{ONE},"b":{_entry(offsets=(8, 12))}}}'.encode(), 12),
        "tensor 'b' begins at byte 8 where 4 is expected: a hole after 'a'",
    ),
    "overlap": (
        raw_file(f'{{"a":{_entry(shape=[2], offsets=(0, 8))},"b":{_entry(offsets=(4, 8))}}}'.encode(), 8),
        "tensor 'b' begins at byte 4 where 8 is expected: an overlap after 'a'",
    ),
    "bytes past the end": (raw_file(f'{{"a":{ONE}}}'.encode(), 12), "8 bytes after the last tensor belong to none"),
    "truncated data": (raw_file(f'{{"a":{ONE}}}'.encode(), 2), "the tensors need 4 bytes of data, the file holds 2: truncated"),
    "odd F4": (raw_file(f'{{"a":{_entry("F4", [3], [0, 2])}}}'.encode(), 2), "shape [3] as F4 (4 bits an element) does not end on a whole byte"),
    "missing shape": (raw_file(b'{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4), "tensor 'a': shape is missing"),
    "entry is no object": (raw_file(b'{"a":[1]}', 4), "tensor 'a': an object with dtype, shape and data_offsets is expected, found list"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused_with_its_reason(case: str, tmp_path: Path) -> None:
    file, message = BAD[case]
    with pytest.raises(CheckpointError) as error:
        _read(tmp_path, file)
    assert str(error.value).startswith("x.safetensors: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(SafetensorError):
        safe_open(tmp_path / "x.safetensors", "np").__enter__()


GOOD: dict[str, tuple[SparseFile, int]] = {
    "one": (raw_file(f'{{"a":{ONE}}}'.encode(), 4), 4),
    "identical duplicate": (raw_file(f'{{"a":{ONE},"a":{ONE}}}'.encode(), 4), 4),
    "last duplicate covers all": (raw_file(f'{{"a":{ONE},"a":{_entry(shape=[2], offsets=(0, 8))}}}'.encode(), 8), 8),
    "metadata null": (raw_file(b'{"__metadata__":null}'), 0),
    "no tensors": (raw_file(b"{}"), 0),
    "leading space": (raw_file(f' {{"a":{ONE}}}'.encode(), 4), 4),
    "trailing tab": (raw_file(f'{{"a":{ONE}}}\t'.encode(), 4), 4),
    "extra field": (raw_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":-1.5}}', 4), 4),
    "F4": (raw_file(f'{{"a":{_entry("F4", [4], [0, 2])}}}'.encode(), 2), 2),
    "F6": (raw_file(f'{{"a":{_entry("F6_E2M3", [4], [0, 3])}}}'.encode(), 3), 3),
    "F8_E8M0": (raw_file(f'{{"a":{_entry("F8_E8M0", [4], [0, 4])}}}'.encode(), 4), 4),
    "C64": (raw_file(f'{{"a":{_entry("C64", [1], [0, 8])}}}'.encode(), 8), 8),
    "scalar": (raw_file(f'{{"a":{_entry(shape=[])}}}'.encode(), 4), 4),
    "empty tensor": (raw_file(f'{{"a":{_entry(shape=[0, 5], offsets=(0, 0))},"b":{ONE}}}'.encode(), 4), 4),
    "out of order": (raw_file(f'{{"b":{_entry(offsets=(4, 8))},"a":{ONE}}}'.encode(), 8), 8),
    "empty name": (raw_file(f'{{"":{ONE}}}'.encode(), 4), 4),
}


@pytest.mark.parametrize("case", GOOD)
def test_accepted_as_safetensors_does(case: str, tmp_path: Path) -> None:
    file, nbytes = GOOD[case]
    assert sum(tensor.nbytes for tensor in _read(tmp_path, file)) == nbytes
    with safe_open(tmp_path / "x.safetensors", "np") as opened:
        opened.keys()


_dtype = st.sampled_from([*SAFETENSORS, "F7", "f32"])
_dimension = st.one_of(st.integers(0, 9), st.sampled_from([2**32, 2**63, 2**64, -1, 1.0, True, None]))
_offset = st.one_of(st.integers(0, 40), st.sampled_from([-1, 2**64, 0.0]))
_tensor = st.fixed_dictionaries(
    {
        "dtype": _dtype,
        "shape": st.lists(_dimension, max_size=3),
        "data_offsets": st.lists(_offset, min_size=1, max_size=3),
    }
)


@st.composite
def _valid_header(draw: st.DrawFn) -> tuple[bytes, int]:
    """Headers that cover their data exactly, with tensors in any order."""
    at = 0
    entries: dict[str, Any] = {}
    for number in range(draw(st.integers(0, 5))):
        dtype = SAFETENSORS[draw(st.sampled_from(sorted(SAFETENSORS)))]
        shape = [*draw(st.lists(st.integers(0, 5), max_size=3)), dtype.block_elements]
        size = dtype.nbytes(__import__("math").prod(shape))
        entries[f"t{number}"] = {"dtype": dtype.name, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    names = draw(st.permutations(list(entries)))
    return json.dumps({name: entries[name] for name in names}).encode(), at


def _agrees(header: bytes, data: int, folder: Path) -> None:
    path = folder / "h.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(data))
    try:
        with safe_open(path, "np") as file:
            theirs: set[str] | None = set(file.keys())
    except SafetensorError:
        theirs = None
    try:
        ours: set[str] | None = {tensor.name for tensor in parse_header(header, data, "h.safetensors")}
    except CheckpointError:
        ours = None
    assert ours == theirs, header


@settings(max_examples=300, deadline=None)
@given(entries=st.dictionaries(st.text(max_size=3), _tensor, max_size=3), data=st.integers(0, 60))
def test_agrees_with_safetensors_on_nonsense(
    entries: dict[str, Any], data: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _agrees(json.dumps(entries).encode(), data, tmp_path_factory.getbasetemp())


@settings(max_examples=300, deadline=None)
@given(header=_valid_header())
def test_agrees_with_safetensors_on_sense(header: tuple[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> None:
    _agrees(*header, tmp_path_factory.getbasetemp())


@settings(max_examples=300, deadline=None)
@given(header=_valid_header(), at=st.integers(0, 400), new=st.binary(min_size=0, max_size=2))
def test_agrees_with_safetensors_on_broken_bytes(
    header: tuple[bytes, int], at: int, new: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text, data = header
    at = min(at, len(text))
    _agrees(text[:at] + new + text[at + len(new) :], data, tmp_path_factory.getbasetemp())
