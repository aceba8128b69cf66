"""Calls of torch's that go another way on a real device, whichever it is, than on the meta device."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.tracing.rules.registry import rule


def _adds_aside(inputs: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the bias is no part of the matrix product."""
    return bias is not None and inputs.dim() != 2 and not (inputs.is_contiguous() and bias.is_contiguous())


def product_and_bias(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`torch.nn.functional.linear` as a real device runs it."""
    if bias is None or not _adds_aside(inputs, bias):
        return torch.nn.functional.linear(inputs, weight, bias)
    return torch.matmul(inputs, weight.t()).add_(bias)


@rule("call", torch.nn.functional.linear, source="aten/src/ATen/native/Linear.cpp, linear")
def linear(call: Any) -> Any:
    """A bias that is not part of the product is added in place; out of place only where tensors are on meta."""
    inputs, bias = call.argument(0, "input"), call.argument(2, "bias")
    return product_and_bias(inputs, call.argument(1, "weight"), bias) if _adds_aside(inputs, bias) else NotImplemented


@rule("call", torch.nn.functional.one_hot, source="aten/src/ATen/native/Onehot.cpp, one_hot")
def one_hot(call: Any) -> Any:
    """Ones are scattered into zeros; on meta the indices are compared with a range. The CPU checks their bounds first."""
    indices, classes = call.argument(0, "tensor"), call.argument(1, "num_classes", -1)
    if indices.numel() == 0:
        return NotImplemented
    if call.device.type == "cpu":
        least, most = torch.aminmax(indices)
        classes = int(most) + 1 if classes == -1 else classes
        del least, most
    elif classes == -1:
        classes = int(indices.max()) + 1
    zeros = torch.zeros((*indices.shape, classes), dtype=torch.int64, device=indices.device)
    return zeros.scatter_(-1, indices.unsqueeze(-1), 1)
