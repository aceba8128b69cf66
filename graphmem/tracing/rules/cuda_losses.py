"""Losses under `torch.autocast`: what their inner functions are cast to, which meta does not see."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.tracing.rules.registry import rule


@rule(
    "call",
    torch._C._nn.cross_entropy_loss,
    device="cuda",
    source="ATen/native/LossNLL.cpp, cross_entropy_loss_symint; ATen/autocast_mode.h",
)
def cross_entropy(call: Any) -> Any:
    """It asks log_softmax for the input's own dtype, so under autocast only nll_loss casts to float32."""
    scores, target = call.argument(0, "input"), call.argument(1, "target")
    smoothed = call.argument(5, "label_smoothing", 0.0)
    if not torch.is_autocast_enabled("cuda") or scores.dtype == torch.float32 or smoothed or target.is_floating_point():
        return NotImplemented
    logarithms = torch.log_softmax(scores, 0 if scores.dim() == 1 else 1, scores.dtype)
    weight, reduction, ignored = (
        call.argument(2, "weight"),
        call.argument(3, "reduction", 1),
        call.argument(4, "ignore_index", -100),
    )
    # The 16-bit logarithms live to the end of the C++ expression, longer than their cast.
    return torch._C._nn.nll_loss_nd(logarithms.to(torch.float32), target, weight, reduction, ignored)
