"""RMS norm, one kernel on CUDA since PyTorch 2.9. Its operator has no kernel for meta, which takes it apart; ours stands in for it.

Source: ATen/native/layer_norm.cpp (rms_norm_symint), ATen/native/cuda/layer_norm_kernel.cu (_fused_rms_norm_cuda and _backward_cuda).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from graphmem.tracing.rules.cuda_kernels import contiguous_copy, partial_sums
from graphmem.tracing.rules.registry import OpCall, Scratch, rule

_library = torch.library.Library("graphmem", "DEF")
_library.define("fused_rms_norm(Tensor x, int[] shape, Tensor? weight) -> (Tensor, Tensor)")
_library.define(
    "fused_rms_norm_backward(Tensor grad, Tensor x, int[] shape, Tensor rstd, Tensor? weight) -> (Tensor, Tensor)"
)


def _forward(x: torch.Tensor, shape: list[int], weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    rows = (*x.shape[: x.dim() - len(shape)], *(1 for _ in shape))
    return torch.empty(x.shape, dtype=x.dtype, device="meta"), torch.empty(rows, dtype=torch.float32, device="meta")


def _backward(
    grad: torch.Tensor, x: torch.Tensor, shape: list[int], rstd: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    of_weight = torch.empty(shape if weight is not None else 0, dtype=x.dtype, device="meta")
    return torch.empty(x.shape, dtype=x.dtype, device="meta"), of_weight


_library.impl("fused_rms_norm", _forward, "Meta")
_library.impl("fused_rms_norm_backward", _backward, "Meta")


class _FusedRMSNorm(torch.autograd.Function):
    """Saves the input, the weight and 1/rms of every row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: list[int], weight: torch.Tensor | None) -> torch.Tensor:
        output, rstd = torch.ops.graphmem.fused_rms_norm(x, shape, weight)
        ctx.save_for_backward(x, rstd, weight)
        ctx.shape = shape
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, rstd, weight = ctx.saved_tensors
        of_x, of_weight = torch.ops.graphmem.fused_rms_norm_backward(grad, x, ctx.shape, rstd, weight)
        return of_x, None, of_weight if weight is not None else None


@rule("call", torch.rms_norm, device="cuda", source="ATen/native/layer_norm.cpp, rms_norm_symint")
def rms_norm(call: Any) -> Any:
    """Fused into one kernel since 2.9, unless weight and input differ in dtype."""
    x, weight = call.argument(0, "input"), call.argument(2, "weight")
    if call.device.torch < (2, 9) or x.is_complex() or (weight is not None and weight.dtype != x.dtype):
        return NotImplemented
    return _FusedRMSNorm.apply(x, list(call.argument(1, "normalized_shape")), weight)


@rule("scratch", "graphmem.fused_rms_norm.default", device="cuda", source="layer_norm_kernel.cu, expect_contiguous")
def forward_scratch(call: OpCall) -> Scratch | None:
    """The kernel reads contiguous memory."""
    x = call.args[0]
    return None if x.is_contiguous() else Scratch(before=(x.numel() * x.element_size(),))


@rule(
    "scratch",
    "graphmem.fused_rms_norm_backward.default",
    device="cuda",
    source="layer_norm_kernel.cu, LaunchGammaBetaBackwardCUDAKernel",
)
def backward_scratch(call: OpCall) -> Scratch | None:
    """Contiguous gradients; over very many rows, blocks sum their part of the weight's gradient, and the parts are summed after."""
    grad, x, shape, _, weight = call.args
    copy = contiguous_copy(grad)
    width = math.prod(shape)
    rows = x.numel() // max(width, 1)
    blocks = partial_sums(rows, width, call.device.sms) if weight is not None else 0
    if not blocks:
        return Scratch(after=copy) if copy else None
    return Scratch(after=(*copy, blocks * width * weight.element_size(), width * weight.element_size()))
