"""Operations whose result depends on data: true values where they are known, a stated assumption where they are not."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.tracing.known import tensors_in
from graphmem.tracing.rules.registry import OpCall, rule
from graphmem.tracing.values import Values

aten = torch.ops.aten


@rule("data", "aten._local_scalar_dense.default")
def scalar(call: OpCall, values: Values) -> Any:
    """``.item()``, ``bool()`` and ``int()`` read the device's memory."""
    real = values.real(call.args, call.kwargs)
    if real is not None:
        return real
    dtype = call.args[0].dtype
    if values.read_by_optimizer is not None and dtype.is_floating_point:
        # L-BFGS stops where the loss it reads does not change.
        values.assume("floats that the optimizer reads (a loss) are taken to fall from 1")
        return 1.0 / (1 + values.read_by_optimizer)
    taken: Any = False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
    values.assume(f"a {str(dtype).removeprefix('torch.')} that depends on float data is taken as {taken}")
    return taken


@rule("data", "aten.gt.Scalar")
def optimizer_goes_on(call: OpCall, values: Values) -> Any:
    """L-BFGS takes a pair of vectors into its history where their product is above a small threshold, and goes on where its direction
    falls by more than one below zero; a search that goes well does both."""
    tensor = call.args[0]
    if values.read_by_optimizer is None or tensor.dim() or not tensor.is_floating_point() or values.known.has(tensor):
        return NotImplemented
    result = values.func(*call.args, **call.kwargs)
    values.assume("what the optimizer holds against a threshold is taken so that its search goes on")
    values.known.learn(result, torch.tensor(call.args[1] > 0))
    return result


@rule("data", "aten._amp_foreach_non_finite_check_and_unscale_.default")
def gradients_are_finite(call: OpCall, values: Values) -> Any:
    """GradScaler skips the optimizer's step where a gradient overflowed."""
    values.assume("gradients do not overflow, so that GradScaler never skips a step")
    values.known.learn(call.args[1], torch.zeros(()))
    return None


@rule("data", "aten.nonzero.default")
def nonzero(call: OpCall, values: Values) -> torch.Tensor:
    """How many rows it returns is how many elements are true."""
    real = values.real(call.args, call.kwargs)
    if real is not None:
        return values.on_device(real)
    mask = call.args[0]
    values.assume("every element of a mask that depends on float data is taken as true (the most memory)")
    return torch.empty_strided((mask.numel(), mask.dim()), (1, max(mask.numel(), 1)), dtype=torch.int64, device="meta")


@rule("data", "aten.masked_select.default")
def masked_select(call: OpCall, values: Values) -> torch.Tensor:
    """How many elements it returns is how many are true."""
    data, mask = call.args
    count = _count_true(mask, values)
    if count is None:
        count = torch.broadcast_shapes(data.shape, mask.shape).numel()
        values.assume("every element of a mask that depends on float data is taken as true (the most memory)")
    elif data.shape != mask.shape:
        real = torch.broadcast_to(values.known.of(mask), torch.broadcast_shapes(data.shape, mask.shape))
        count = int(real.count_nonzero())
    return torch.empty(count, dtype=data.dtype, device="meta")


def _count_true(mask: torch.Tensor, values: Values) -> int | None:
    real = values.known.of(mask)
    return None if real is None else int(real.count_nonzero())


@rule("data", "aten.topk.default")
def topk(call: OpCall, values: Values) -> Any:
    """Which are the largest depends on float data: a router's choice of experts, for one."""
    real = values.real(call.args, call.kwargs)
    result = aten.topk.default(*call.args, **call.kwargs)
    indices = result[1]
    if real is not None:
        values.known.learn(result[0], real[0])
        values.known.learn(indices, real[1])
        return result
    scores, dim = call.args[0], call.argument(2, "dim", -1)
    values.known.learn(indices, _chosen(indices, dim, scores.shape[dim] if scores.dim() else 1, values.routing))
    values.assume(f"top-{call.args[1]} choices are taken as {values.routing}")
    return result


def _chosen(indices: torch.Tensor, dim: int, among: int, routing: str) -> torch.Tensor:
    """Round robin over the choices (``balanced``), or the first ones every time (``worst``)."""
    if indices.numel() > 2**24:
        return torch.zeros(1, dtype=torch.int64).expand(indices.shape)
    if not indices.dim():
        return torch.zeros((), dtype=torch.int64)
    last = indices.movedim(dim, -1)
    chosen = torch.arange(last.shape[-1]).expand(last.shape)
    if routing == "balanced":
        chosen = torch.arange(indices.numel()).reshape(last.shape) % max(among, 1)
    return chosen.movedim(-1, dim)


@rule("data", "aten.argmax.default", "aten.argmin.default")
def argmax(call: OpCall, values: Values) -> torch.Tensor:
    """Which is the largest depends on float data."""
    func = values.func
    result: torch.Tensor = func(*call.args, **call.kwargs)
    real = values.real(call.args, call.kwargs)
    if real is None:
        values.assume("the position of a maximum that depends on float data is taken as 0")
        real = torch.zeros((), dtype=torch.int64).expand(result.shape)
    values.known.learn(result, real)
    return result


@rule("data", "aten.sort.default", "aten.sort.stable", "aten.multinomial.default", "aten.max.dim", "aten.min.dim")
def ordered(call: OpCall, values: Values) -> Any:
    """An order or a draw depends on float data; it is a valid index all the same."""
    real = values.real(call.args, call.kwargs)
    result = values.func(*call.args, **call.kwargs)
    outputs = tensors_in(result)
    if real is not None:
        for tensor, data in zip(outputs, tensors_in(real), strict=True):
            values.known.learn(tensor, data)
        return result
    indices = outputs[-1]
    if indices.numel() <= 2**20:
        dim = call.kwargs.get("dim", -1)
        steady = "sort" in call.name and indices.dim()
        values.known.learn(
            indices,
            _chosen(indices, dim, indices.shape[dim], "worst") if steady else torch.zeros_like(indices, device="cpu"),
        )
        values.assume("an order that depends on float data is taken as the present one")
    return result


@rule(
    "data",
    "aten._unique2.default",
    "aten.unique_dim.default",
    "aten.unique_consecutive.default",
    "aten._unique.default",
)
def unique(call: OpCall, values: Values) -> Any:
    """How many distinct values there are depends on them."""
    real = values.real(call.args, call.kwargs)
    if real is not None:
        return tuple(values.on_device(data) for data in real)
    values.assume("all values of a tensor that depends on float data are taken as distinct")
    count = call.args[0].numel()
    first = torch.empty(count, dtype=call.args[0].dtype, device="meta")
    others = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in (call.args[0].shape, (count,)))
    return (first, *others) if call.name != "aten._unique.default" else (first, next(others))


@rule("data", "aten.repeat_interleave.Tensor")
def repeat_interleave(call: OpCall, values: Values) -> torch.Tensor:
    """The length of the result is the sum of the repeats."""
    real = values.real(call.args, call.kwargs)
    if real is not None:
        return values.on_device(real)
    size = call.kwargs.get("output_size")
    if size is None:
        size = call.args[0].numel()
        values.assume("repeat counts that depend on float data are taken as 1")
    return torch.empty(size, dtype=call.args[0].dtype, device="meta")


@rule("data", "aten.bincount.default")
def bincount(call: OpCall, values: Values) -> torch.Tensor:
    """The length of the result is the largest value plus one."""
    real = values.real(call.args, call.kwargs)
    if real is not None:
        return values.on_device(real)
    size = max(call.argument(2, "minlength", 0), 1)
    values.assume("bin counts of values that depend on float data are taken to need the minimum length")
    return torch.empty(size, dtype=torch.int64, device="meta")


@rule("data", "aten.equal.default")
def equal(call: OpCall, values: Values) -> bool:
    """Compares data."""
    real = values.real(call.args, call.kwargs)
    if real is None:
        values.assume("tensors that depend on float data are taken as different")
    return bool(real)


@rule("data", "aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default")
def index(call: OpCall, values: Values) -> Any:
    """A boolean index selects as many rows as it has true elements."""
    if not any(item is not None and item.dtype in (torch.bool, torch.uint8) for item in call.args[1]):
        return NotImplemented
    indices = []
    for item in call.args[1]:
        if item is None or item.dtype not in (torch.bool, torch.uint8):
            indices.append(item)
            continue
        real = values.known.of(item)
        if real is None:
            values.assume("every element of a mask that depends on float data is taken as true (the most memory)")
            real = torch.ones((), dtype=torch.bool).expand(item.shape)
        indices += [column.to("meta") for column in real.nonzero(as_tuple=True)]
    real = values.real(call.args, call.kwargs) if values.func in (aten.index.Tensor, aten.index_put.default) else None
    result = values.func(call.args[0], indices, *call.args[2:], **call.kwargs)
    if real is not None:
        values.known.learn(result, real)
    elif call.name not in ("aten.index.Tensor", "aten.index_put.default"):
        inputs = values.known.inputs(values.func, call.args, call.kwargs)
        if inputs is None:
            values.known.forget(call.args[0].untyped_storage()._cdata)
        else:
            values.func(*inputs[0], **inputs[1])
    return result


@rule("data", "aten._to_copy.default")
def to_copy(call: OpCall, values: Values) -> Any:
    """A copy to the host needs data; between dtypes and to the device it does not."""
    tensor = call.args[0]
    if tensor.device.type != "meta" or getattr(call.kwargs.get("device"), "type", "meta") != "cpu":
        return NotImplemented
    real = values.real(call.args, call.kwargs)
    if real is None:
        values.assume("data copied to the host is taken as zeros")
        real = torch.zeros(tensor.shape, dtype=call.kwargs.get("dtype") or tensor.dtype)
    return real


@rule("data", "aten.copy_.default")
def copied_to_host(call: OpCall, values: Values) -> Any:
    """A tensor in host memory takes a device tensor's values, as far as they are known."""
    target, source = call.args[:2]
    if target.device.type == "meta" or source.device.type != "meta":
        return NotImplemented
    real = values.known.of(source)
    if real is None:
        values.assume("values copied to a tensor in host memory are taken as they were there")
        return target
    return target.copy_(real)
