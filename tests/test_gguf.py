"""GGUF headers: sizes held against the gguf package, files written by it, and broken ones."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

import graphmem
from graphmem.dtypes import GGML
from graphmem.errors import CheckpointError, UnsupportedError
from graphmem.inference.kv_cache import CacheLayout, NoCache, cache_layout
from graphmem.sources.gguf_config import config_of
from tests.checkpoints import SparseFile, gguf_string, write_all
from tests.hub import Hub


def test_block_sizes_are_ggmls_own() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {id: (d.name, d.block_elements, d.block_bytes) for id, d in GGML.items()} == theirs


def _write(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(4096)
    writer.add_embedding_length(512)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"token-{n}" for n in range(50_000)])
    shapes = {"token_embd.weight": (1000, 512), "output_norm.weight": (512,)}
    for n in range(2):
        shapes |= {
            f"blk.{n}.attn_q.weight": (512, 512),
            f"blk.{n}.ffn_down.weight": (512, 1024),
            f"blk.{n}.attn_norm.weight": (512,),
        }
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(name, np.zeros(shape, np.float32))
        else:
            data = np.zeros((shape[0], shape[1] // 256 * 144), np.uint8)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_the_gguf_package_wrote(tmp_path: Path) -> None:
    path = _write(tmp_path / "m-Q4_K_M.gguf")
    report = graphmem.inspect(path)
    theirs = gguf.GGUFReader(path)
    assert report["bytes"] == sum(int(t.n_bytes) for t in theirs.tensors)
    assert report["parameters"] == sum(int(t.n_elements) for t in theirs.tensors)
    assert {row["component"] for row in report["components"]} == {"embedding", "attention", "mlp", "norm"}
    assert report["kv_cache_bytes_per_token"] == 2 * 2 * 2 * 64 * 2
    assert report["layers"].rows[1][0] == "blk.0-1 ×2"


def test_on_the_hub_by_range_and_with_a_choice(hub: Hub, tmp_path: Path) -> None:
    data = _write(tmp_path / "m.gguf").read_bytes()
    big = SparseFile(data, 40_000_000)
    hub.add("org/m-GGUF", {"m-Q8_0.gguf": big, "m-Q4_K_M.gguf": SparseFile(data, 30_000_000), "mmproj-m.gguf": big})
    report = graphmem.inspect("org/m-GGUF")
    assert report.notes == ("counted m-Q4_K_M.gguf; not counted: m-Q8_0.gguf, mmproj-m.gguf",)
    assert sum(r.sent for r in hub.requests) < 3_000_000
    assert graphmem.inspect("org/m-GGUF/m-Q8_0.gguf")["parameters"] == report["parameters"]


def _header(version: int = 3, tensors: int = 0, pairs: bytes = b"", count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, count) + pairs


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"GGML" + bytes(64), CheckpointError, "does not begin with 'GGUF'"),
        (_header(9) + bytes(64), UnsupportedError, "GGUF version 9; known are"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), UnsupportedError, "a big-endian GGUF"),
        (_header()[:12], CheckpointError, "the header runs past the end of the file"),
        (_header(tensors=10**12), CheckpointError, "the header runs past the end of the file"),
        (_header(count=1, pairs=gguf_string("k") + struct.pack("<I", 99)), CheckpointError, "key 'k' has unknown value type 99"),
        (_header(tensors=1, pairs=gguf_string("t") + struct.pack("<IQIQ", 1, 32, 99, 0)), UnsupportedError, "tensor 't': unknown GGML type 99"),
        (_header(tensors=1, pairs=gguf_string("t") + struct.pack("<IQIQ", 1, 33, 2, 0)), CheckpointError, "tensor 't': 33 elements of Q4_0 do not fill whole blocks"),
        (_header(tensors=1, pairs=gguf_string("t") + struct.pack("<IQIQ", 1, 2**40, 0, 0)), CheckpointError, "tensor 't' needs 4,398,046,511,104 bytes, the file holds"),
        (_header(tensors=1, pairs=gguf_string("t") + struct.pack("<I", 9)), CheckpointError, "tensor 't' has 9 dimensions"),
    ],
)  # fmt: skip
def test_broken(tmp_path: Path, data: bytes, kind: type[Exception], message: str) -> None:
    write_all(tmp_path, {"m.gguf": data})
    with pytest.raises(kind) as error:
        graphmem.inspect(tmp_path / "m.gguf")
    assert str(error.value).startswith("m.gguf: ")
    assert message in str(error.value)


def _layout(**pairs: object) -> object:
    metadata = {
        "general.architecture": "x",
        "x.block_count": 4,
        "x.embedding_length": 64,
        "x.attention.head_count": 4,
        "x.context_length": 100,
    }
    return cache_layout(
        config_of({**metadata, **{f"x.{key.replace('__', '.')}": value for key, value in pairs.items()}})
    )


def test_caches_of_gguf_headers() -> None:
    per_layer = 2 * 4 * 16 * 2
    for pairs, tokens_kept in (
        ({}, 400),
        ({"attention__sliding_window": 10, "attention__sliding_window_pattern": [True, True, False, True]}, 130),
        ({"attention__shared_kv_layers": 1}, 300),
    ):
        layout = _layout(**pairs)
        assert isinstance(layout, CacheLayout)
        assert layout.bytes_at(100) == per_layer * tokens_kept, pairs


def test_states_of_gguf_headers() -> None:
    """llama.cpp: convolution inputs of all channels and group projections, and a state of inner × state size (here in 16 and 32 bit)."""
    sizes = {"ssm__inner_size": 128, "ssm__state_size": 16, "ssm__conv_kernel": 4, "ssm__group_count": 2}
    for pairs in ({"full_attention_interval": 2}, {"attention__head_count_kv": [4, 0, 4, 0]}):
        layout = _layout(**pairs, **sizes)
        assert isinstance(layout, CacheLayout)
        state = (128 + 2 * 2 * 16) * 4 * 2 + 128 * 16 * 4
        assert layout.bytes_at(100) == 2 * 4 * 16 * 2 * 200 + 2 * state
    assert isinstance(_layout(full_attention_interval=2), NoCache)


def test_a_window_without_a_place_and_an_encoder() -> None:
    layout = _layout(attention__chunk_size=10)
    assert isinstance(layout, CacheLayout)
    assert "sliding window of 10 but not which layers use it" in layout.notes[0]
    assert isinstance(_layout(attention__causal=False, attention__head_count_kv=4), NoCache)
