"""How one head's vector of a token is stored: 16 bit, 8 bit, or in blocks with scales.

Only what depends on the vector alone. Scales a tensor or a layer has once (fp8) take no room worth counting and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphmem.errors import GraphmemError, nearest


@dataclass(frozen=True)
class KVDType:
    """A way to store keys and values. ``row(n)``: bytes of a vector of ``n`` elements."""

    key: str
    row: Callable[[int], int]
    #: In words, for ``--explain``: what an element takes.
    words: str
    source: str


def _elements(size: int) -> Callable[[int], int]:
    return lambda n: n * size


def _blocks(values: int, size: int) -> Callable[[int], int]:
    """Blocks of ``values`` elements that take ``size`` bytes, scales included; a vector is padded to whole blocks."""
    return lambda n: -(-n // values) * size


def _nvfp4(n: int) -> int:
    # Two fp4 values a byte, and one fp8 scale for 16 of them.
    return -(-n // 2) + -(-n // 16)


_TORCH = "one element of torch's dtype"
_GGML = "ggml-common.h, the block's struct"

_ALL = (
    KVDType("float32", _elements(4), "4 B", _TORCH),
    KVDType("bfloat16", _elements(2), "2 B", _TORCH),
    KVDType("float16", _elements(2), "2 B", _TORCH),
    KVDType("fp8", _elements(1), "1 B", "vLLM, --kv-cache-dtype fp8: one scale a layer"),
    KVDType("int8", _elements(1), "1 B", "one scale a layer"),
    KVDType("nvfp4", _nvfp4, "(1/2 + 1/16) B", "NVFP4: two values a byte, an fp8 scale for 16"),
    KVDType("q8_0", _blocks(32, 34), "34/32 B", _GGML),
    KVDType("q5_1", _blocks(32, 24), "24/32 B", _GGML),
    KVDType("q5_0", _blocks(32, 22), "22/32 B", _GGML),
    KVDType("q4_1", _blocks(32, 20), "20/32 B", _GGML),
    KVDType("q4_0", _blocks(32, 18), "18/32 B", _GGML),
    KVDType("iq4_nl", _blocks(32, 18), "18/32 B", _GGML),
)
_NAMES = {one.key: one for one in _ALL}
_ALIASES = {
    "fp32": "float32", "f32": "float32", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16",
    "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "fp8_inc": "fp8", "float8_e4m3fn": "fp8",
}  # fmt: skip

#: What a config that names no dtype is cached in.
BFLOAT16 = _NAMES["bfloat16"]


def kv_dtype_named(name: str, among: tuple[str, ...] | None = None) -> KVDType:
    """The storage that ``name`` means. ``among``: the names an engine has; None: all.

    Raises:
        GraphmemError: none has that name; the message says which come close.
    """
    found = _NAMES.get(_ALIASES.get(name.lower(), name.lower()))
    if found is None or (among is not None and found.key not in among and name not in among):
        raise GraphmemError(f"KV dtype {name!r}: {nearest(name, among or _NAMES)}")
    return found
