"""What single CUDA kernels take beside their outputs: scalars on the device, partial sums, copies of what is not contiguous."""

from __future__ import annotations

import torch

from graphmem.tracing.rules.registry import OpCall, Scratch, rule


@rule(
    "scratch",
    "aten.where.ScalarOther",
    "aten.where.ScalarSelf",
    device="cuda",
    source="ATen/native/TensorCompare.cpp, where",
)
def where_scalar(call: OpCall) -> Scratch:
    """The number becomes a tensor on the device."""
    return Scratch(before=(call.result.element_size(),))


@rule("scratch", "aten.where.Scalar", device="cuda", source="ATen/native/TensorCompare.cpp, where")
def where_scalars(call: OpCall) -> Scratch:
    """Both numbers become tensors on the device."""
    return Scratch(before=(call.result.element_size(),) * 2)


@rule(
    "scratch",
    "aten._safe_softmax.default",
    device="cuda",
    source="ATen/native/transformers/attention.cpp, _safe_softmax",
)
def safe_softmax(call: OpCall) -> Scratch:
    """Rows that are wholly masked are found with a mask of the scores' size, and set to zero."""
    scores, dim = call.args[0], call.args[1]
    rows = scores.numel() // max(scores.shape[dim], 1)
    return Scratch(after=(scores.numel(), rows, call.result.element_size()))


def contiguous_copy(tensor: torch.Tensor) -> tuple[int, ...]:
    """Bytes of the copy that a kernel for contiguous memory makes first; none if there is nothing to copy."""
    return () if tensor.is_contiguous() else (tensor.numel() * tensor.element_size(),)


@rule(
    "scratch",
    "aten._softmax.default",
    "aten._log_softmax.default",
    device="cuda",
    source="ATen/native/cuda/SoftMax.cu, host_softmax",
)
def softmax(call: OpCall) -> Scratch | None:
    """The kernel reads contiguous memory."""
    copy = contiguous_copy(call.args[0])
    return Scratch(before=copy) if copy else None


@rule(
    "scratch", "aten._softmax_backward_data.default", "aten._log_softmax_backward_data.default", device="cuda",
    source="ATen/native/cuda/SoftMax.cu, host_softmax_backward",
)  # fmt: skip
def softmax_backward(call: OpCall) -> Scratch | None:
    """The kernel reads contiguous memory."""
    copies = contiguous_copy(call.args[0]) + contiguous_copy(call.args[1])
    return Scratch(before=copies) if copies else None


@rule(
    "scratch",
    "aten.native_layer_norm_backward.default",
    device="cuda",
    source="ATen/native/cuda/layer_norm_kernel.cu, LaunchGammaBetaBackwardCUDAKernel",
)
def layer_norm_backward(call: OpCall) -> Scratch | None:
    """Over very many rows, blocks sum their part of the weight's and bias's gradients, and the parts are summed after."""
    grad, x, shape = call.args[:3]
    width = 1
    for size in shape:
        width *= size
    rows = x.numel() // max(width, 1)
    weight = call.args[5]
    blocks = partial_sums(rows, width, call.device.sms) if weight is not None else 0
    if not blocks:
        return Scratch(after=contiguous_copy(grad)) if not grad.is_contiguous() else None
    row = width * weight.element_size()
    return Scratch(after=(*contiguous_copy(grad), blocks * row, blocks * row, row, row))


def partial_sums(rows: int, width: int, sms: int) -> int:
    """Blocks that each sum a part of a norm's weight gradient, of ``width`` elements; 0 where one pass does it.

    Source: ATen/native/cuda/layer_norm_kernel.cu, LaunchGammaBetaBackwardCUDAKernel.
    """
    if rows <= 65536 or width / 32 >= sms / 2:
        return 0
    return min(32768 // -(-width // 32), -(-rows // 32))


@rule("scratch", "aten.native_group_norm.default", device="cuda", source="ATen/native/cuda/group_norm_kernel.cu")
def group_norm(call: OpCall) -> Scratch:
    """Scale and shift of every channel of every sample, in float32."""
    x, weight, batch, channels = call.args[0], call.args[1], call.args[3], call.args[4]
    return Scratch(before=contiguous_copy(x), after=(batch * channels * 4,) * 2 if weight is not None else ())


@rule(
    "scratch", "aten.native_group_norm_backward.default", device="cuda", source="ATen/native/cuda/group_norm_kernel.cu"
)
def group_norm_backward(call: OpCall) -> Scratch:
    """Sums over each channel, and the coefficients made of them."""
    grad, x, weight = call.args[0], call.args[1], call.args[4]
    batch, channels, groups = call.args[5], call.args[6], call.args[8]
    coefficients = (batch * groups * 4,) * 2 + ((batch * channels * 4,) if weight is not None else ())
    return Scratch(before=contiguous_copy(grad) + contiguous_copy(x), after=(batch * channels * 4,) * 2 + coefficients)


@rule("scratch", "aten.native_dropout.default", device="cuda", source="ATen/native/cuda/Dropout.cu, dropout_cuda")
def dropout_order(call: OpCall) -> Scratch:
    """The mask is allocated before the output."""
    return Scratch(order=(1, 0))


@rule("scratch", "aten._foreach_norm.Scalar", device="cuda", source="ATen/native/cuda/ForeachReduceOp.cu")
def foreach_norm(call: OpCall) -> Scratch:
    """Every chunk of 65,536 elements leaves its part in a table as wide as the largest tensor needs."""
    tensors = call.args[0]
    chunks = max(-(-tensor.numel() // 65536) for tensor in tensors)
    return Scratch(before=(len(tensors) * chunks * 4,))


@rule(
    "scratch", "aten.cumsum.default", "aten.cumprod.default", device="cuda", source="ATen/native/cuda/ScanKernels.cpp"
)
def scan(call: OpCall) -> Scratch | None:
    """The kernel reads contiguous memory."""
    copy = contiguous_copy(call.args[0])
    return Scratch(after=copy) if copy else None


@rule("scratch", "aten.pow.Scalar", device="cuda", source="ATen/native/Pow.cpp, pow.Scalar")
def power_of_scalar(call: OpCall) -> Scratch:
    """The base becomes a double (or complex double, or int64) on the device."""
    return Scratch(after=(16 if isinstance(call.args[0], complex) else 8,))
