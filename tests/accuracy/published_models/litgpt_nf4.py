"""bitsandbytes 0.41.1's 4-bit linear, as lit-gpt's plugin makes it: weights packed from float16, which is what they unpack to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_BLOCK, _STATISTICS_BLOCK = 64, 256


class _Product(torch.autograd.Function):
    """``x @ weight``, the weight unpacked for it and again in backward; what it keeps lives as long as the graph does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, packed: torch.Tensor, linear: QuantizedLinear) -> torch.Tensor:
        output = F.linear(x, linear.unpacked().to(x.dtype), linear.bias)
        ctx.linear = linear
        ctx.kept = (x, packed) if any(ctx.needs_input_grad[:2]) else None
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return torch.matmul(grad, ctx.linear.unpacked().to(grad.dtype)), None, None


class QuantizedLinear(nn.Module):
    """Two weights a byte, a scale for 64 of them; in double quantization the scales in bytes, with a scale for 256 of those."""

    def __init__(self, inputs: int, outputs: int, bias: bool, double: bool) -> None:
        super().__init__()
        self.inputs, self.outputs, self.double = inputs, outputs, double
        blocks = inputs * outputs // _BLOCK
        packed = torch.empty(inputs * outputs // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.register_buffer("scales", torch.empty(blocks, dtype=torch.uint8 if double else torch.float32))
        self.register_buffer("values", torch.empty(16, dtype=torch.float32))
        if double:
            self.register_buffer("offset", torch.empty((), dtype=torch.float32))
            self.register_buffer("second_scales", torch.empty(-(-blocks // _STATISTICS_BLOCK), dtype=torch.float32))

    def unpacked(self) -> torch.Tensor:
        scales = self.scales
        if self.double:
            scales = torch.empty(scales.shape, dtype=torch.float32, device=scales.device)
            scales += self.offset
        return torch.empty(self.outputs, self.inputs, dtype=torch.float16, device=scales.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x, self.weight.t(), self)  # type: ignore[no-any-return]


def quantized(double: bool) -> Callable[[int, int, bool], nn.Module]:
    """Makes the linears of ``bnb.nf4``, or of ``bnb.nf4-dq``."""
    return lambda inputs, outputs, bias: QuantizedLinear(inputs, outputs, bias, double)
