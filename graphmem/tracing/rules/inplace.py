"""Operations that autograd runs out of place because its tensors are on meta, and in place on a real device.

``at::isTensorSubclassLike`` (aten/src/ATen/TensorSubclassLikeUtils.h) says yes for every meta tensor and wherever a dispatch mode is
active; each rule here is about one use of it in torch/csrc/autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from graphmem.tracing.rules.registry import OpCall, rule


@rule("inplace", "aten.add.Tensor", source="torch/csrc/autograd/input_buffer.cpp, InputBuffer::accumulate")
def accumulated(call: OpCall, owned: Callable[[torch.Tensor], bool]) -> torch.Tensor | None:
    """A second gradient for the same node is added in place to the first, if the engine alone holds it and it is dense."""
    first, second = call.args[0], call.args[1]
    if (
        call.kwargs
        or not isinstance(second, torch.Tensor)
        or first.shape != second.shape
        or first.dtype != second.dtype
    ):
        return None
    return first if owned(first) and _dense(first) else None


def _dense(tensor: torch.Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense(tensor)


_MANUAL = "torch/csrc/autograd/FunctionsManual.cpp"
_INDEXING = "aten/src/ATen/native/TensorAdvancedIndexing.cpp"
#: Operator → the backward functions that put gradients at places of a tensor of zeros they have just made.
_INTO_ZEROS = {
    "aten.scatter.src": (
        "aten/src/ATen/native/ReduceOps.cpp, value_selecting_reduction_backward",
        {"SortBackward0", "SortBackward1", "TopkBackward0", "MaxBackward0", "MinBackward0", "KthvalueBackward0", "ModeBackward0",
         "MedianBackward1", "NanmedianBackward1"},
    ),
    "aten.scatter_add.default": (f"{_INDEXING}, gather_backward", {"GatherBackward0", "CummaxBackward0", "CumminBackward0"}),
    "aten.index_add.default": (f"{_INDEXING}, index_select_backward", {"IndexSelectBackward0"}),
    "aten.index_put.default": (f"{_MANUAL}, index_backward", {"IndexBackward0"}),
    "aten.put.default": (f"{_MANUAL}, take_backward", {"TakeBackward0"}),
    "aten.masked_scatter.default": (f"{_INDEXING}, masked_select_backward", {"MaskedSelectBackward0"}),
}  # fmt: skip


def _into_zeros(nodes: set[str]) -> Callable[[OpCall, Callable[[torch.Tensor], bool]], torch.Tensor | None]:
    def written(call: OpCall, owned: Callable[[torch.Tensor], bool]) -> torch.Tensor | None:
        """The zeros are written in place."""
        return call.args[0] if call.node in nodes else None

    return written


for _name, (_source, _nodes) in _INTO_ZEROS.items():
    rule("inplace", _name, source=_source)(_into_zeros(_nodes))


@rule("inplace", "aten.sub.Tensor", "aten.mul.Tensor", source=f"{_MANUAL}, binary_cross_entropy_with_logits_backward")
def logits_gradient(call: OpCall, owned: Callable[[torch.Tensor], bool]) -> torch.Tensor | None:
    """The gradient is built in place of the sigmoid, or of ``pos_weight * target + 1``."""
    if call.node != "BinaryCrossEntropyWithLogitsBackward0":
        return None
    first = call.args[0]
    return first if first.shape == call.args[1].shape and owned(first) else None


@rule("inplace", "aten.logical_and.default", source=f"{_MANUAL}, clamp_backward")
def clamped(call: OpCall, owned: Callable[[torch.Tensor], bool]) -> torch.Tensor | None:
    """Two comparisons of which the first becomes the mask."""
    return call.args[0] if call.node == "ClampBackward1" else None
