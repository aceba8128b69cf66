"""Truth 8: peaks of single operations on a GPU (cross-entropy, linear + cross-entropy), as Liger-Kernel's benchmarks measured them.

A run is forward and ``y.backward()``, ten times without zeroing: what counts is a run with the gradients of an earlier one alive.
Both heads of the linear benchmark are on the device, whichever runs. Inputs are leaves that require a gradient.
Source: linkedin/Liger-Kernel:benchmark/scripts and benchmark/data/all_benchmark_data.csv@ead96b6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import graphmem
from graphmem.tracing.device import A100
from graphmem.training.losses import chunk_rows

_MIB = 2**20


class _Loss(nn.Module):
    """``torch.nn.CrossEntropyLoss`` on logits that are a leaf; ``loss(logits, target)`` in its place."""

    def __init__(self, rows: int, vocabulary: int, loss: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.empty(rows, vocabulary, device="meta"))
        self.loss = loss

    def forward(self, target: torch.Tensor) -> torch.Tensor:
        return self.loss(self.logits, target)


class _Head(nn.Module):
    """Linear layer and loss on hidden states that are a leaf, in bf16; another head is there, unused."""

    def __init__(self, rows: int, width: int, vocabulary: int, loss: Callable[[Any, Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.empty(rows, width, dtype=torch.bfloat16, device="meta"))
        self.weight = nn.Parameter(torch.empty(vocabulary, width, dtype=torch.bfloat16, device="meta"))
        self.other = nn.Parameter(torch.empty(vocabulary, width, dtype=torch.bfloat16, device="meta"))
        self.loss = loss

    def forward(self, target: torch.Tensor) -> torch.Tensor:
        return self.loss(self.hidden, self.weight, target)


class _InPlace(torch.autograd.Function):
    """liger_kernel/ops/cross_entropy.py 0.2.1: the kernel writes the gradient over the logits."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros(logits.shape[0], dtype=logits.dtype, device=logits.device)
        counted = (target != -100).sum()
        del counted
        ctx.save_for_backward(logits.detach())
        return torch.sum(loss)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (written,) = ctx.saved_tensors
        return written, None


class _Fused(torch.autograd.Function):
    """liger_kernel/ops/fused_linear_cross_entropy.py 0.4.2: logits of a chunk in fp32 beside their 16-bit copies."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        rows = chunk_rows(hidden.shape[0], hidden.shape[1], weight.shape[0])
        grad_weight, grad_hidden = torch.zeros_like(weight), torch.zeros_like(hidden)
        loss = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        total = (target != -100).sum().item()
        alpha = torch.ones((), device=hidden.device)
        for first in range(0, hidden.shape[0], rows):
            chunk = hidden[first : first + rows]
            logits = chunk @ weight.t()
            logits = logits.float()
            grad_logits = logits.to(hidden.dtype)
            grad_logits = grad_logits * alpha
            grad_hidden[first : first + rows] = grad_logits @ weight
            torch.addmm(grad_weight, grad_logits.t(), chunk, out=grad_weight)
        del total
        ctx.save_for_backward(grad_hidden.detach(), grad_weight.detach())
        return torch.sum(loss)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden, grad_weight, None


class _NoOptimizer:
    """The benchmarks have none, and zero no gradients."""

    def __init__(self, parameters: Any) -> None:
        pass

    def step(self) -> None:
        pass


def _linear_then_loss(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(nn.functional.linear(hidden, weight), target)


@dataclass(frozen=True)
class OpCase:
    """A figure in MiB, as printed, and the module whose runs it is about."""

    name: str
    what: str
    measured: float
    module: Callable[[], nn.Module]
    rows: int
    #: Bytes that earlier runs in the same process left.
    earlier: int = 0

    def predicted(self) -> float:
        """MiB of the most allocated, each tensor rounded up to 512 bytes as the allocator does."""
        trace = graphmem.trace(
            self.module(), torch.zeros(self.rows, dtype=torch.int64), step="train", loss=lambda output: output, optimizer=_NoOptimizer,
            steps=3, device=replace(A100, torch=(2, 4)),
        )  # fmt: skip
        return (trace.peak + self.earlier) / _MIB


def _plain(name: str, vocabulary: int, measured: float) -> OpCase:
    return OpCase(
        name, f"cross-entropy, 8 × 2,048 tokens, {vocabulary:,} classes, fp32", measured,
        lambda: _Loss(8 * 2048, vocabulary, nn.functional.cross_entropy), 8 * 2048,
    )  # fmt: skip


def _linear(name: str, rows: int, measured: float) -> OpCase:
    return OpCase(
        name, f"linear 4,096 → 128,256 and cross-entropy, {rows:,} tokens, bf16", measured,
        lambda: _Head(rows, 4096, 128_256, _linear_then_loss), rows,
    )  # fmt: skip


#: cuBLAS's workspace of the autograd thread: the same process measured the baseline first, whose backward multiplies matrices.
_BACKWARD_WORKSPACE = 8_519_680

CASES: tuple[OpCase, ...] = (
    _plain("O001", 4096, 1280.1259765625),
    _plain("O002", 32768, 10240.1259765625),
    _plain("O003", 131072, 40960.125),
    OpCase(
        "O005", "Liger's cross-entropy, 8 × 2,048 tokens, 131,072 classes, fp32", 8192.328125,
        lambda: _Loss(8 * 2048, 131072, _InPlace.apply), 8 * 2048,
    ),
    OpCase(
        "O007", "Liger 0.4.2's fused linear cross-entropy, 4,096 → 128,256, 4,096 tokens, bf16", 4245.5478515625,
        lambda: _Head(4096, 4096, 128_256, _Fused.apply), 4096, _BACKWARD_WORKSPACE,
    ),
    _linear("O008", 8192, 9162.3134765625),
    _linear("O010", 16384, 15302.3759765625),
    _linear("O012", 32768, 27582.5),
)  # fmt: skip
