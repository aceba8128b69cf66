"""What the scripts share: autocast, tokens, the host, PyTorch's cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional

Mark = Callable[[str], None]
HOST = torch.device("cpu")


def autocast(enabled: bool) -> AbstractContextManager[object]:
    return torch.autocast("cuda", dtype=torch.bfloat16) if enabled else nullcontext()


def tokens(*shape: int, vocab: int = 10_000) -> Tensor:
    return torch.randint(0, vocab, shape)


def gradients(wanted: bool) -> AbstractContextManager[object]:
    return nullcontext() if wanted else torch.no_grad()


def flat_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's cross-entropy on views of one row a token."""
    return functional.cross_entropy(logits.reshape(-1, logits.size(-1)), targets.reshape(-1))
