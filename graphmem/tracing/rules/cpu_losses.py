"""Losses on the CPU: the terms are computed before they are reduced."""

from __future__ import annotations

import torch

from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

_LOSS = "aten/src/ATen/native/Loss.cpp"
#: at::Reduction: none, mean, sum.
_NONE, _MEAN = 0, 1


def _division(dtype: torch.dtype) -> tuple[int, int]:
    """What dividing by a count in place takes: the count as a tensor of 8 bytes, and again in the result's dtype."""
    return 8, 0 if dtype == torch.int64 else dtype.itemsize


def _terms_bytes(call: OpCall) -> int:
    dtype = torch.result_type(call.args[0], call.args[1])
    return torch.broadcast_shapes(call.args[0].shape, call.args[1].shape).numel() * dtype.itemsize


@rule(
    "scratch",
    "aten.mse_loss.default",
    "aten.smooth_l1_loss.default",
    device="cpu",
    source=f"{_LOSS}, TORCH_IMPL_FUNC(mse_loss_out)",
)
def structured_loss(call: OpCall) -> Scratch | None:
    """The terms go to a tensor of their own; a mean divides its sum by a number."""
    reduction = call.argument(2, "reduction", _MEAN)
    if reduction == _NONE:
        return None
    return Scratch(program=(Out(), _terms_bytes(call), *(_division(call.result.dtype) if reduction == _MEAN else ())))


@rule("scratch", "aten.huber_loss.default", device="cpu", source=f"{_LOSS}, huber_loss")
def huber_loss(call: OpCall) -> Scratch | None:
    """The terms go to a tensor of their own."""
    reduction = call.argument(2, "reduction", _MEAN)
    if reduction == _NONE:
        return None
    return Scratch(program=(_terms_bytes(call), Out(), *(_division(call.result.dtype) if reduction == _MEAN else ())))


@rule("scratch", "aten.binary_cross_entropy.default", device="cpu", source=f"{_LOSS}, binary_cross_entropy_out_cpu")
def binary_cross_entropy(call: OpCall) -> Scratch | None:
    """The reduced loss is copied back into the tensor of the terms."""
    reduction = call.argument(3, "reduction", _MEAN)
    if reduction == _NONE:
        return None
    dtype = call.result.dtype
    return Scratch(program=(Out(), dtype.itemsize, *(_division(dtype) if reduction == _MEAN else ())))


@rule(
    "scratch",
    "aten.binary_cross_entropy_backward.default",
    device="cpu",
    source=f"{_LOSS}, binary_cross_entropy_backward_out_cpu",
)
def binary_cross_entropy_backward(call: OpCall) -> Scratch | None:
    """A mean's gradient is divided by the count in place."""
    return Scratch(after=_division(call.result.dtype)) if call.argument(4, "reduction", _MEAN) == _MEAN else None


@rule(
    "scratch",
    "aten.binary_cross_entropy_with_logits.default",
    device="cpu",
    source=f"{_LOSS}, binary_cross_entropy_with_logits",
)
def binary_cross_entropy_with_logits(call: OpCall) -> Scratch:
    """The logarithm of the sigmoid with its buffer, the weights of positives, and the terms."""
    logits, target, positive = call.args[0], call.args[1], call.argument(3, "pos_weight")
    terms, dtype, reduction = logits.nbytes, logits.dtype, call.argument(4, "reduction", _MEAN)
    program: list[int | Out | Free] = [terms, terms, Free(1)]
    taken = 2
    if positive is not None:  # (pos_weight - 1).mul(target).add_(1)
        program += [*_division(dtype), positive.nbytes, Free(taken + 1), Free(taken), target.nbytes, Free(taken + 2)]
        program += [*_division(dtype), Free(taken + 5), Free(taken + 4), Free(taken + 3)]
        taken += 6
    program += [Out()] if reduction == _NONE else [terms, Out(), *(_division(dtype) if reduction == _MEAN else ())]
    return Scratch(program=tuple(program))


@rule(
    "output",
    "aten.log_sigmoid_forward.default",
    device="cpu",
    source="aten/src/ATen/native/Activation.cpp, log_sigmoid_forward_cpu",
)
def log_sigmoid(call: OpCall) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPU keeps a buffer of the input's size for backward; a GPU keeps an empty one."""
    result = torch.empty_like(call.args[0])
    return result, torch.empty_like(result)


@rule(
    "scratch",
    "aten._ctc_loss.default",
    "aten._ctc_loss.Tensor",
    device="cpu",
    source="aten/src/ATen/native/LossCTC.cpp, ctc_loss_cpu_template",
)
def ctc_loss(call: OpCall) -> Scratch:
    """The table of forward probabilities is allocated before the losses."""
    return Scratch(order=(1, 0))


@rule("scratch", "aten._ctc_loss_backward.default", "aten._ctc_loss_backward.Tensor", device="cpu",
      source="aten/src/ATen/native/LossCTC.cpp, ctc_loss_backward_cpu_template")  # fmt: skip
def ctc_loss_backward(call: OpCall) -> Scratch:
    """A table of backward probabilities beside the one of forward."""
    return Scratch(after=(call.args[6].nbytes,))
