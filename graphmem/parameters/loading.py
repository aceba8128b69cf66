"""What loading takes in other precisions: the naive table (parameters × bytes) and what loaders really store.

A loader that quantizes leaves embeddings, the head, norms, routers, convolutions and biases in 16 bit, and adds scales. Shapes
of packed weights and scales come from `schemes`; nothing here is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphmem.parameters.roles import Component
from graphmem.parameters.schemes import Scheme
from graphmem.parameters.stored import StoredTensor

#: Components whose 2-D weights are linear layers that loaders quantize.
_QUANTIZED: frozenset[Component] = frozenset(
    ("attention", "ssm", "mlp", "experts", "shared experts", "vision tower", "audio tower", "projector")
)
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


def load_with(
    scheme: Scheme, tensors: Sequence[StoredTensor], roles: Mapping[str, Component], kept_bytes: int = 2
) -> Loaded:
    """Bytes after loading with ``scheme``; what is not quantized takes ``kept_bytes`` an element (16 bit by default)."""
    packed = scales = kept = 0
    for tensor in tensors:
        shapes = linear_shapes(tensor, roles[tensor.spec.name])
        if shapes is None:
            kept += tensor.spec.nbytes if tensor.kind == "buffer" else tensor.parameters * kept_bytes
            continue
        count, out, inp = shapes
        parts = scheme.layout(out, inp)
        packed += count * sum(part.nbytes for part in parts if part.holds_weight)
        scales += count * sum(part.nbytes for part in parts if not part.holds_weight)
    return Loaded(packed, scales, kept)


def linear_shapes(tensor: StoredTensor, role: Component) -> tuple[int, int, int] | None:
    """(how many, out, in) of the linear weights in a tensor that a loader would quantize; stacked experts are one each."""
    spec = tensor.spec
    if role not in _QUANTIZED or tensor.kind != "parameter" or spec.dtype.bits < 16:
        return None
    if (
        spec.module_classes
        and not any(cls in ("Linear", "Conv1D") for cls in spec.module_classes)
        and role != "experts"
    ):
        return None
    leaf = spec.module.rpartition(".")[2]
    if role == "experts" and len(spec.shape) == 3:
        return spec.shape[0], spec.shape[1], spec.shape[2]
    if len(spec.shape) != 2 or not spec.name.endswith(".weight") or leaf in _TABLES:
        return None
    return 1, spec.shape[0], spec.shape[1]
