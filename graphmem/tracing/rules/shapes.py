"""What operations return where the meta device has no kernel for them, or returns less memory than a real one does."""

from __future__ import annotations

import torch

from graphmem.tracing.rules.registry import OpCall, rule

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
