"""Pooling and resampling of images on the CPU."""

from __future__ import annotations

import math
from typing import Any

import torch

from graphmem.tracing.rules.cpu_contiguous import contiguous_bytes
from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

_UPSAMPLE = "aten/src/ATen/native/cpu/UpSampleKernel.cpp"


@rule("call", torch.max_pool1d, device="cpu", source="aten/src/ATen/native/MaxPooling.cpp, max_pool1d")
def max_pool1d(call: Any) -> Any:
    """Without a gradient the CPU keeps no indices."""
    tensor = call.args[0]
    if torch.is_grad_enabled() and tensor.requires_grad:
        return NotImplemented

    def number(position: int, name: str, default: Any) -> int:
        value = call.argument(position, name, default)
        value = value[0] if isinstance(value, list | tuple) and value else value
        return int(value) if value not in (None, [], ()) else int(default)

    kernel = number(1, "kernel_size", 1)
    stride, padding = number(2, "stride", kernel), number(3, "padding", 0)
    dilation, ceil = number(4, "dilation", 1), call.argument(5, "ceil_mode", False)
    spare = tensor.shape[-1] + 2 * padding - dilation * (kernel - 1) - 1
    steps = (math.ceil if ceil else math.floor)(spare / stride) + 1
    if ceil and (steps - 1) * stride >= tensor.shape[-1] + padding:
        steps -= 1
    return torch.empty((*tensor.shape[:-1], steps), dtype=tensor.dtype, device="meta")


def _names(suffix: str) -> list[str]:
    kinds = ("nearest1d", "nearest2d", "nearest3d", "_nearest_exact1d", "_nearest_exact2d", "_nearest_exact3d", "linear1d",
             "bilinear2d", "trilinear3d", "bicubic2d")  # fmt: skip
    names = [f"_upsample{kind}" if kind.startswith("_") else f"upsample_{kind}" for kind in kinds]
    return [f"aten.{name}{suffix}.default" for name in names]


@rule("scratch", *_names(""), device="cpu", source=f"{_UPSAMPLE}, *_kernel_impl")
def upsample(call: OpCall) -> Scratch | None:
    """Small images are resampled in channels-last order, by copies of both; others by tables of indices and weights."""
    tensor, result = call.args[0], call.result
    if tensor.dim() == 4 and "bicubic" not in call.name and _vectorized(call.name, tensor, result):
        return Scratch(after=(_other_order(tensor), _other_order(result)))
    neighbours = 4 if "bicubic" in call.name else 2 if "linear" in call.name else 1
    table = [size for extent in result.shape[2:] for size in (extent * 8, extent * max(tensor.element_size(), 4))]
    pairs = [table[2 * d + part] for d in range(tensor.dim() - 2) for _ in range(neighbours) for part in (0, 1)]
    oldest_first = [Free(index) for index in range(len(pairs) + 1)]
    return Scratch(program=(Out(), contiguous_bytes(tensor), *pairs, *oldest_first))


def _vectorized(name: str, tensor: torch.Tensor, result: torch.Tensor) -> bool:
    """One thread does images of three channels so as well."""
    last = tensor.is_contiguous(memory_format=torch.channels_last) and tensor.shape[1] > 3
    if "linear" in name and tensor.shape[1] == 3:
        return True
    return last or result.shape[-1] + result.shape[-2] <= 128


def _other_order(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_contiguous(memory_format=torch.channels_last) else tensor.numel() * tensor.element_size()


@rule(
    "scratch", *_names("_backward"), device="cpu", source="aten/src/ATen/native/cpu/UpSampleMoreKernel.cpp, *_backward"
)
def upsample_backward(call: OpCall) -> Scratch | None:
    """The gradient is read as one dense block."""
    nbytes = contiguous_bytes(call.args[0])
    return Scratch(after=(nbytes,)) if nbytes else None


@rule("scratch", "aten.max_pool2d_with_indices_backward.default", "aten.avg_pool2d_backward.default",
      "aten._adaptive_avg_pool2d_backward.default", device="cpu", source="aten/src/ATen/native/cpu/MaxPoolKernel.cpp, AvgPoolKernel.cpp "
      "and AdaptiveAvgPoolKernel.cpp, *_backward_kernel_impl")  # fmt: skip
def pooling_backward(call: OpCall) -> Scratch | None:
    """The gradient's order decides the kernel's: a result in the other order is computed aside and copied back."""
    gradient, result = call.args[0], call.result
    last = (
        not gradient.is_contiguous()
        and gradient.dim() == 4
        and gradient.is_contiguous(memory_format=torch.channels_last)
    )
    return Scratch(after=(0, _other_order(result)) if last else (contiguous_bytes(gradient), contiguous_bytes(result)))
