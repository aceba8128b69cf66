"""Reductions, scans and sorts on the CPU, and what they make on the way."""

from __future__ import annotations

import torch

from graphmem.tracing.rules.cpu_promotion import converted
from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

_REDUCE = "aten/src/ATen/native/ReduceOps.cpp"


@rule("scratch", "aten.sum.default", "aten.sum.dim_IntList", "aten.prod.default", "aten.prod.dim_int", "aten.any.default",
      "aten.any.dim", "aten.any.dims", "aten.all.default", "aten.all.dim", "aten.all.dims", "aten.cumsum.default", "aten.cumprod.default",
      device="cpu", source=f"{_REDUCE}, make_reduction, which casts its input to the result's dtype")  # fmt: skip
def reduced_in_result_dtype(call: OpCall) -> Scratch | None:
    """The input is converted to the result's dtype once the result is allocated."""
    wanted: torch.dtype = call.result.dtype
    nbytes = converted(call.args[0], wanted)
    return Scratch(program=(Out(), nbytes)) if nbytes else None


@rule("scratch", "aten.mean.default", "aten.mean.dim", device="cpu", source=f"{_REDUCE}, TORCH_IMPL_FUNC(mean_out)")
def mean(call: OpCall) -> Scratch:
    """A sum, in float32 for 16-bit dtypes, divided in place by a number that is made a tensor."""
    dtype: torch.dtype = call.result.dtype
    if dtype.itemsize > 2:
        return Scratch(program=(Out(), converted(call.args[0], dtype), Free(0), 8, converted(1, dtype)))
    total = call.result.numel() * 4
    return Scratch(program=(Out(), total, call.args[0].numel() * 4, Free(1), 8, 4))


@rule("scratch", "aten.logsumexp.default", device="cpu", source=f"{_REDUCE}, logsumexp_out_impl")
def logsumexp(call: OpCall) -> Scratch:
    """The maxima are kept, compared with infinity and subtracted before the exponentials are summed."""
    maxima, own = call.result.nbytes, call.args[0].nbytes
    compared = call.result.numel()
    number = converted(0.0, call.result.dtype)
    return Scratch(
        program=(maxima, maxima, 8, number, compared, Free(2), Free(3), Free(4), Free(1), own, Out(), Free(5))
    )


@rule(
    "scratch",
    "aten.sort.default",
    "aten.sort.stable",
    device="cpu",
    source="aten/src/ATen/native/Sorting.cpp, sort_stable",
)
def sort(call: OpCall) -> Scratch | None:
    """The indices start as one range, which is broadcast."""
    tensor = call.args[0]
    stable = call.name.endswith("stable")
    dim = call.kwargs["dim"] if "dim" in call.kwargs else call.argument(2 if stable else 1, "dim", -1)
    return Scratch(program=(Out(0), Out(1), tensor.shape[dim] * 8)) if tensor.dim() and tensor.numel() else None


@rule(
    "scratch",
    "aten._unique2.default",
    device="cpu",
    source="aten/src/ATen/native/Unique.cpp, unique_cpu_sorted_template",
)
def unique(call: OpCall) -> Scratch | None:
    """All values are sorted first."""
    tensor = call.args[0]
    if tensor.dtype == torch.bool:
        return None
    indices = tensor.numel() * 8
    return Scratch(program=(tensor.nbytes, indices, indices, Free(2), Out(0)))


@rule(
    "scratch",
    "aten.masked_select.default",
    device="cpu",
    source="aten/src/ATen/native/TensorAdvancedIndexing.cpp, masked_select_out_impl_cpu",
)
def masked_select(call: OpCall) -> Scratch:
    """True elements are counted first, by a sum of the mask as int64."""
    count = torch.broadcast_shapes(call.args[0].shape, call.args[1].shape).numel() * 8
    return Scratch(program=(8, count, Free(1), Free(0), Out()))


@rule("scratch", "aten.index.Tensor", device="cpu", source="aten/src/ATen/native/IndexingUtils.h, expandTensors")
def index(call: OpCall) -> Scratch | None:
    """A boolean index is turned into the positions of its true elements, all of them in one tensor."""
    masks = [item for item in call.args[1] if item is not None and item.dtype in (torch.bool, torch.uint8)]
    if not masks:
        return None
    untouched = list(call.args[0].shape)
    position = 0
    for item in call.args[1]:
        width = item.dim() if item is not None and item.dtype in (torch.bool, torch.uint8) else 1
        untouched[position : position + width] = [
            0 if item is not None else size for size in untouched[position : position + width]
        ]
        position += width
    kept = torch.Size([size for size in untouched if size]).numel()
    count = call.result.numel() // kept if kept else 0
    return Scratch(tuple(count * mask.dim() * 8 for mask in masks))


@rule(
    "scratch", "aten.repeat.default", device="cpu", source="aten/src/ATen/native/TensorShape.cpp, repeat (PyTorch 2.13)"
)
def repeat(call: OpCall) -> Scratch:
    """The order of its dimensions is worked out with small tensors."""
    order = 8 * len(call.args[1])
    return Scratch(program=(Out(), order, 8, order, Free(1), 2 * order, Free(0), Free(2), Free(3)))
