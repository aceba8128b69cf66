"""What operations return where the meta device has no kernel for them, or returns less memory than a real one does."""

from __future__ import annotations

import torch

from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

aten = torch.ops.aten


def _within(nbytes: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor like this one in a storage of so many bytes."""
    tensor = torch.empty(nbytes // like.element_size(), dtype=like.dtype, device="meta")
    return tensor.resize_(like.shape)


@rule(
    "output",
    "aten.mse_loss.default",
    "aten.smooth_l1_loss.default",
    source="aten/src/ATen/native/Loss.cpp, TORCH_META_FUNC(mse_loss)",
)
def loss_in_place_of_terms(call: OpCall) -> torch.Tensor:
    """The result is allocated for every term, then shrunk to the reduced loss; its storage keeps its size."""
    func = aten.mse_loss.default if "mse" in call.name else aten.smooth_l1_loss.default
    result: torch.Tensor = func(*call.args, **call.kwargs)
    if call.argument(2, "reduction", 1) == 0:
        return result
    terms = torch.broadcast_shapes(call.args[0].shape, call.args[1].shape).numel()
    return _within(terms * result.element_size(), result)


@rule("output", "aten.binary_cross_entropy.default", source="aten/src/ATen/native/Loss.cpp, binary_cross_entropy_out_cpu; "
      "cuda/Loss.cu, binary_cross_entropy_out_cuda")  # fmt: skip
def binary_cross_entropy(call: OpCall) -> torch.Tensor:
    """The result is allocated for every term, then shrunk to the reduced loss; its storage keeps its size."""
    result: torch.Tensor = aten.binary_cross_entropy.default(*call.args, **call.kwargs)
    return result if call.argument(3, "reduction", 1) == 0 else _within(call.args[0].nbytes, result)


@rule("output", "aten._ctc_loss_backward.default", "aten._ctc_loss_backward.Tensor", source="aten/src/ATen/native/LossCTC.cpp, "
      "ctc_loss_backward_cpu_template")  # fmt: skip
def ctc_loss_backward(call: OpCall) -> torch.Tensor:
    """The gradient has the shape of the log-probabilities."""
    return torch.empty(call.args[1].shape, dtype=call.args[1].dtype, device="meta")


@rule("output", "aten.multi_margin_loss_backward.default", "aten.multilabel_margin_loss_backward.default",
      source="aten/src/ATen/native/LossMultiMargin.cpp, multi_margin_loss_cpu_backward")  # fmt: skip
def margin_loss_backward(call: OpCall) -> torch.Tensor:
    """The gradient is dense and has the input's shape."""
    return torch.empty(call.args[1].shape, dtype=call.args[1].dtype, device="meta")


def _last(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor of images is in channels-last order."""
    if tensor is None or tensor.dim() not in (4, 5) or tensor.is_contiguous():
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)


def _in_last_order(tensor: torch.Tensor) -> torch.Tensor:
    memory_format = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta", memory_format=memory_format)


@rule("output", "aten.convolution.default", source="aten/src/ATen/native/ConvUtils.h, cudnn_conv_suggest_memory_format and "
      "mkldnn_conv_use_channels_last")  # fmt: skip
def convolution(call: OpCall) -> torch.Tensor:
    """The result is in channels-last order where input or weight is; on meta it never is."""
    result: torch.Tensor = aten.convolution.default(*call.args, **call.kwargs)
    return _in_last_order(result) if _last(call.args[0]) or _last(call.args[1]) else result


@rule("output", "aten.convolution_backward.default", source="aten/src/ATen/native/ConvUtils.h, cudnn_conv_suggest_memory_format and "
      "mkldnn_conv_use_channels_last")  # fmt: skip
def convolution_backward(call: OpCall) -> tuple[torch.Tensor | None, ...]:
    """The gradients of input and weight are in channels-last order where input or weight is."""
    gradients: tuple[torch.Tensor | None, ...] = aten.convolution_backward.default(*call.args, **call.kwargs)
    if not (_last(call.args[1]) or _last(call.args[2])):
        return gradients
    return tuple(g if g is None or g.dim() < 4 else _in_last_order(g) for g in gradients)


_COLUMNS = "aten/src/ATen/native/Im2Col.cpp and Col2Im.cpp, *_out_cpu_template; cuda/Im2Col.cu and Col2Im.cu"


@rule("output", "aten.col2im.default", "aten.im2col.default", source=_COLUMNS)
def columns(call: OpCall) -> torch.Tensor:
    """The result begins with the size of the input; where it needs less, its storage keeps that size."""
    func = aten.col2im.default if "col2im" in call.name else aten.im2col.default
    result: torch.Tensor = func(*call.args, **call.kwargs)
    return (
        _within(call.args[0].numel() * result.element_size(), result)
        if result.numel() < call.args[0].numel()
        else result
    )


@rule("scratch", "aten.col2im.default", "aten.im2col.default", source=_COLUMNS)
def grown_columns(call: OpCall) -> Scratch:
    """The input is made contiguous. The result begins with its size; where it needs more it is allocated again."""
    tensor, result = call.args[0], call.result
    nbytes = tensor.numel() * tensor.element_size()
    dense = 0 if tensor.is_contiguous() else nbytes
    if result.numel() <= tensor.numel():
        return Scratch(program=(dense, Out()))
    return Scratch(program=(dense, nbytes, Out(), Free(1)))


@rule("output", "aten._ctc_loss.Tensor", source="aten/src/ATen/native/LossCTC.cpp, ctc_loss_allocate_outputs")
def ctc_loss_with_tensors(call: OpCall) -> tuple[torch.Tensor, torch.Tensor]:
    """Its lengths are data; a row is as long as the targets' row can be."""
    logarithms, targets = call.args[0], call.args[1]
    time, batch = logarithms.shape[0], logarithms.shape[1] if logarithms.dim() == 3 else 1
    longest = targets.shape[1] if targets.dim() == 2 else targets.numel()
    losses = torch.empty(batch, dtype=logarithms.dtype, device="meta")
    return losses, torch.empty(batch, time, 2 * longest + 1, dtype=logarithms.dtype, device="meta")
