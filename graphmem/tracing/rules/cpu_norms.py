"""Normalisation layers on the CPU: buffers for statistics, one part per thread. The rules are for one thread."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.tracing.rules.cpu_contiguous import contiguous_bytes
from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

THREADS = 1


def _work_bytes(dtype: torch.dtype) -> int:
    """16-bit numbers are summed in float32."""
    return max(dtype.itemsize, 4)


def _statistics_dtype(tensor: torch.Tensor, weight: torch.Tensor | None) -> torch.dtype:
    mixed = weight is not None and weight.dtype != tensor.dtype
    return torch.float32 if mixed else tensor.dtype


def _channels_last(tensor: torch.Tensor) -> bool:
    if tensor.is_contiguous() or tensor.dim() not in (4, 5):
        return False
    memory_format = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return tensor.is_contiguous(memory_format=memory_format)


@rule(
    "output",
    "aten.native_layer_norm.default",
    device="cpu",
    source="aten/src/ATen/native/layer_norm.cpp, layer_norm_cpu",
)
def layer_norm_statistics(call: OpCall) -> Any:
    """Mean and reciprocal deviation are in the input's dtype, or in float32 where the weight's differs; elsewhere in float32."""
    tensor, weight = call.args[0], call.args[2]
    output, mean, rstd = torch.ops.aten.native_layer_norm.default(*call.args, **call.kwargs)
    dtype = _statistics_dtype(tensor, weight)
    return (output, mean, rstd) if dtype == mean.dtype else (output, mean.to(dtype), rstd.to(dtype))


@rule(
    "scratch",
    "aten.native_layer_norm.default",
    device="cpu",
    source="aten/src/ATen/native/layer_norm.cpp, layer_norm_cpu",
)
def layer_norm(call: OpCall) -> Scratch | None:
    """The input is made contiguous before the result is allocated."""
    nbytes = contiguous_bytes(call.args[0])
    return Scratch((nbytes,)) if nbytes else None


@rule("scratch", "aten.native_layer_norm_backward.default", device="cpu", source="aten/src/ATen/native/cpu/layer_norm_kernel.cpp, "
      "LayerNormBackwardKernelImplInternal")  # fmt: skip
def layer_norm_backward(call: OpCall) -> Scratch | None:
    """The gradients of weight and bias are first summed per thread."""
    gradient, tensor, normalized, _, _, _, _, wanted = call.args
    columns = torch.Size(normalized).numel()
    sums = 2 * THREADS * columns * tensor.element_size() if wanted[1] or wanted[2] else 0
    program = (contiguous_bytes(tensor), *_outputs(call.result), contiguous_bytes(gradient), sums)
    return Scratch(program=program)


def _outputs(result: Any) -> tuple[Out, ...]:
    present = sum(isinstance(tensor, torch.Tensor) for tensor in result)
    return tuple(Out(position) for position in range(present))


@rule(
    "output",
    "aten.native_group_norm.default",
    device="cpu",
    source="aten/src/ATen/native/group_norm.cpp, native_group_norm",
)
def group_norm_statistics(call: OpCall) -> Any:
    """As for layer norm; and the result keeps the input's memory format."""
    tensor, weight = call.args[0], call.args[1]
    output, mean, rstd = torch.ops.aten.native_group_norm.default(*call.args, **call.kwargs)
    dtype = _statistics_dtype(tensor, weight)
    return output, mean.to(dtype), rstd.to(dtype)


@rule("scratch", "aten.native_group_norm.default", device="cpu", source="aten/src/ATen/native/cpu/group_norm_kernel.cpp, "
      "GroupNormKernelImplChannelsLastInternal")  # fmt: skip
def group_norm(call: OpCall) -> Scratch | None:
    """In channels-last order scale and shift are computed into a buffer first, by another way for large images."""
    tensor, _, _, batch, channels, pixels, groups, _ = call.args
    if not _channels_last(tensor):
        return None
    work = _work_bytes(tensor.dtype)
    if pixels < 1024:
        return Scratch(after=(batch * channels * 2 * work,))
    return Scratch(after=(THREADS * batch * 2 * channels * work, batch * 2 * groups * work))


@rule("scratch", "aten.native_group_norm_backward.default", device="cpu", source="aten/src/ATen/native/cpu/group_norm_kernel.cpp, "
      "GroupNormBackwardKernelImplInternal")  # fmt: skip
def group_norm_backward(call: OpCall) -> Scratch:
    """Sums over each channel of gradient times input, and of the gradient."""
    tensor, batch, channels, pixels, groups = call.args[1], *call.args[5:9]
    work = _work_bytes(tensor.dtype)
    sums = [batch * channels * work] * 2
    if _channels_last(tensor) and pixels >= 2048:
        sums += [THREADS * batch * 2 * channels * work, batch * 2 * groups * work]
    return Scratch(after=tuple(sums))


@rule(
    "output",
    "aten.native_batch_norm.default",
    device="cpu",
    source="aten/src/ATen/native/Normalization.cpp, batch_norm_cpu",
)
def batch_norm_outputs(call: OpCall) -> Any:
    """Nothing is kept for backward when the running statistics are used."""
    output, mean, deviation = torch.ops.aten.native_batch_norm.default(*call.args, **call.kwargs)
    return (output, mean, deviation) if call.args[5] else (output, mean.new_empty(0), deviation.new_empty(0))


@rule("scratch", "aten.native_batch_norm.default", "aten._native_batch_norm_legit.default", "aten._native_batch_norm_legit.no_stats",
      device="cpu", source="aten/src/ATen/native/Normalization.cpp, batch_norm_cpu_update_stats_template; cpu/batch_norm_kernel.cpp, "
      "batch_norm_cpu_contiguous_impl")  # fmt: skip
def batch_norm(call: OpCall) -> Scratch:
    """Statistics of the batch are collected aside; then a scale and a shift for every channel."""
    tensor = call.args[0]
    training = call.args[3] if call.name.endswith("no_stats") else call.args[5]
    channel = tensor.shape[1] * _work_bytes(tensor.dtype)
    if not training:
        return Scratch(program=(Out(0), channel, channel, Free(0), Free(1)))
    if _channels_last(tensor):
        return Scratch(program=(Out(0), Out(1), Out(2), channel, channel, THREADS * channel, Free(2), Free(1), Free(0),
                                channel, channel))  # fmt: skip
    return Scratch(program=(Out(0), Out(1), Out(2), channel, channel, Free(0), Free(1), channel, channel))


@rule("scratch", "aten.native_batch_norm_backward.default", device="cpu", source="aten/src/ATen/native/Normalization.cpp, "
      "batch_norm_backward_cpu_template")  # fmt: skip
def batch_norm_backward(call: OpCall) -> Scratch | None:
    """The input's gradient is allocated twice: the first one, of the format that was guessed, is replaced."""
    gradient, tensor, training, wanted = call.args[0], call.args[1], call.args[7], call.args[9]
    if not wanted[0]:
        return None
    channel = tensor.shape[1] * tensor.element_size()
    if gradient.is_contiguous() != tensor.is_contiguous() or gradient.stride() != tensor.stride():
        return Scratch(program=(*_outputs(call.result), channel))
    rest = tuple(Out(position) for position in range(1, 1 + bool(wanted[1]) + bool(wanted[2])))
    buffers: tuple[int, ...] = ()
    if _channels_last(tensor):
        buffers = (0 if training else channel, 2 * THREADS * channel)
    return Scratch(program=(call.result[0].nbytes, *rest, Out(0), Free(0), *buffers))
