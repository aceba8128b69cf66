"""The loss of a language model, from its last hidden states: full logits, or linear layer and cross-entropy in chunks.

`chunked` is PyTorch's own ``torch.nn.functional.linear_cross_entropy``; `fused` is what Liger's and Unsloth's Triton kernels
allocate (Hsu et al. 2024, "Liger Kernel", section 3.2): gradients are made in forward, a chunk of the logits at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from graphmem.errors import GraphmemError


def with_loss_head(model: nn.Module, head: str) -> None:
    """Make a language model of transformers compute its loss in chunks, in place: its head hands hidden states on, its loss does the rest.

    Raises:
        GraphmemError: the model has no head and loss of the usual kind, or caps its logits.
    """
    if head == "full":
        return
    if head == "chunked" and not hasattr(nn, "LinearCrossEntropyOptions"):
        raise GraphmemError(
            "--loss chunked: torch.nn.functional.linear_cross_entropy came with PyTorch 2.13; use --loss fused"
        )
    owner: Any = model
    find = getattr(owner, "get_output_embeddings", None)
    layer = find() if find is not None else None
    causal = hasattr(owner, "loss_function") and owner.loss_type in (
        "ForCausalLM",
        None,
    )  # None: the default, which is that
    encoder_decoder = getattr(getattr(owner, "config", None), "is_encoder_decoder", False)
    if not isinstance(layer, nn.Linear) or not causal or encoder_decoder or not hasattr(owner, "generate"):
        raise GraphmemError(
            f"--loss {head}: {type(owner).__name__} is no causal language model with a linear head; use --loss full"
        )
    if getattr(owner.config.get_text_config(), "final_logit_softcapping", None):
        raise GraphmemError(
            f"--loss {head}: {type(owner).__name__} caps its logits, which only full logits allow; use --loss full"
        )
    layer.__class__ = type(type(layer).__name__, (_HandsOn, type(layer)), {"__module__": type(layer).__module__})
    owner.loss_function = _LossOfHidden(head, layer)


class _HandsOn:
    """Mixed in before the head's class: the head's turn comes in the loss."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class _LossOfHidden:
    """Stands for a model's ``loss_function``; its logits are hidden states."""

    def __init__(self, head: str, layer: nn.Linear) -> None:
        self.head, self.layer = head, layer

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **_: Any) -> torch.Tensor:
        """transformers/loss/loss_utils.py, ForCausalLMLoss: labels are shifted by padding them at the end."""
        shifted = functional.pad(labels, (0, 1), value=-100)[..., 1:].contiguous().view(-1)
        hidden = logits.view(-1, logits.shape[-1])
        if self.head == "chunked":
            return chunked(hidden, self.layer.weight, shifted)
        return fused_linear_cross_entropy(hidden, self.layer.weight, shifted)


def chunked(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """PyTorch's linear cross-entropy in its default chunks. ``hidden`` [tokens, width], ``weight`` [vocabulary, width]."""
    return functional.linear_cross_entropy(hidden, weight, target, options=nn.LinearCrossEntropyOptions())


def fused_linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Liger's: ``hidden`` [tokens, width], ``weight`` [vocabulary, width] → scalar."""
    return _FusedLinear.apply(hidden, weight, target)


def chunk_rows(tokens: int, width: int, vocabulary: int) -> int:
    """Rows of hidden states a chunk, so that a chunk's logits are about as large as all hidden states (Liger's fused_linear_cross_entropy.py)."""
    parts = -(-vocabulary // width)
    least = -(-tokens // parts)
    return 1 << (least - 1).bit_length()


class _FusedLinear(torch.autograd.Function):
    """liger_kernel/ops/fused_linear_cross_entropy.py (0.8): one buffer for the logits of a chunk, over which the kernel writes their
    gradient; the weight's gradient is summed up in its own dtype."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        tokens, width = hidden.shape
        rows = min(chunk_rows(tokens, width, weight.shape[0]), tokens)
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if weight.requires_grad else None
        loss = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
        buffer = hidden.new_empty((rows, weight.shape[0]), dtype=dtype)
        for first in range(0, tokens, rows):
            chunk, table = (
                hidden[first : first + rows].to(dtype),
                weight.to(dtype),
            )  # copies under autocast, a pair a chunk
            logits = torch.mm(chunk, table.t(), out=buffer[: chunk.shape[0]])
            if grad_hidden.dtype == dtype:
                torch.mm(logits, table, out=grad_hidden[first : first + rows])
            else:
                grad_hidden[first : first + rows] = torch.mm(logits, table)
            if grad_weight is None:
                continue
            if weight.dtype == torch.float32:
                grad_weight += torch.mm(logits.t(), chunk)
            else:
                torch.addmm(grad_weight, logits.t(), chunk, out=grad_weight)
        ctx.save_for_backward(grad_hidden.detach(), *([grad_weight.detach()] if grad_weight is not None else []))
        return torch.sum(loss)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        grad_hidden, *grad_weight = ctx.saved_tensors
        return grad_hidden, grad_weight[0] if grad_weight else None, None
