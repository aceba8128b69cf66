"""What loading takes in other precisions: the naive table (parameters × bytes) and what loaders really store.

A loader that quantizes leaves embeddings, the head, norms, routers, convolutions and biases in 16 bit, and adds scales. Shapes
of packed weights and scales come from `schemes`; nothing here is fitted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphmem.parameters.roles import Component
from graphmem.parameters.schemes import Scheme
from graphmem.parameters.stored import StoredTensor

#: Components whose matrices loaders leave alone. Any other matrix called ``weight`` is a linear layer's.
_KEPT: frozenset[Component] = frozenset(("embedding", "head", "router", "norm", "convolution"))
_TABLES = ("embedding", "embeddings", "embed_tokens", "relative_attention_bias", "position_embedding")


@dataclass(frozen=True, slots=True)
class NaiveRow:
    """Everything at one width, as accelerate's estimate-memory counts: half-bytes so that int4 stays whole."""

    key: str
    title: str
    half_bytes: int
    #: Bytes a parameter while training with Adam at this width; None where nobody trains at it.
    adam_bytes: int | None

    def nbytes(self, parameters: int) -> int:
        return -(-parameters * self.half_bytes // 2)


#: accelerate multiplies by 4 for Adam: weights, gradients and two moments, all at the row's width.
NAIVE: tuple[NaiveRow, ...] = (
    NaiveRow("float32", "float32", 8, 16),
    NaiveRow("float16", "float16/bfloat16", 4, 8),
    NaiveRow("fp8", "fp8", 2, None),
    NaiveRow("int8", "int8", 2, None),
    NaiveRow("int4", "int4", 1, None),
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader allocates: packed weights, their scales, and what it keeps as it was."""

    packed: int
    scales: int
    kept: int

    @property
    def total(self) -> int:
        return self.packed + self.scales + self.kept


@dataclass(frozen=True)
class Linears:
    """The linear weights a loader would quantize, (out, in) → how many, and the number of all other parameters."""

    shapes: Mapping[tuple[int, int], int]
    others: int


def linears_of(tensors: Sequence[StoredTensor], roles: Mapping[str, Component]) -> Linears:
    """Split a model's parameters into what loaders quantize and what they keep. Buffers are in neither."""
    shapes: Counter[tuple[int, int]] = Counter()
    others = 0
    for tensor in tensors:
        found = linear_shapes(tensor, roles[tensor.spec.name])
        if found is None:
            others += tensor.parameters
        else:
            count, out, inp = found
            shapes[out, inp] += count
    return Linears(shapes, others)


def load_with(scheme: Scheme, linears: Linears) -> Loaded:
    """Bytes after loading with ``scheme``; what is not quantized takes 16 bit."""
    packed = scales = 0
    for (out, inp), count in linears.shapes.items():
        for part in scheme.layout(out, inp):
            if part.holds_weight:
                packed += count * part.nbytes
            else:
                scales += count * part.nbytes
    return Loaded(packed, scales, 2 * linears.others)


def linear_shapes(tensor: StoredTensor, role: Component) -> tuple[int, int, int] | None:
    """(how many, out, in) of the linear weights in a tensor that a loader would quantize; stacked experts are one each."""
    spec = tensor.spec
    if tensor.kind != "parameter" or spec.dtype.bits < 16:
        return None
    if role in ("experts", "shared experts") and len(spec.shape) == 3:
        return spec.shape[0], spec.shape[1], spec.shape[2]
    if len(spec.shape) != 2 or not spec.name.endswith(".weight"):
        return None
    if spec.module_classes:  # a live module: loaders go by the class, and leave the output head alone
        linear = "Linear" in spec.module_classes or "Conv1D" in spec.module_classes
        return (1, *spec.shape) if linear and role not in ("head", "router") else None
    if role in _KEPT or spec.module.rpartition(".")[2] in _TABLES:
        return None
    return 1, spec.shape[0], spec.shape[1]
