"""A linear layer under each of PyTorch's main losses; the module returns the loss itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.accuracy.network import Network, integers, normal

ROWS, WIDTH, CLASSES = 12, 16, 7


class Judged(nn.Module):
    """`judge(scores, *targets)` of a linear layer's scores."""

    def __init__(self, judge: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)
        self.judge = judge

    def forward(self, x: Tensor, *targets: Tensor) -> Tensor:
        return self.judge(self.layer(x), *targets)


def _ctc(scores: Tensor, labels: Tensor) -> Tensor:
    steps = scores.log_softmax(-1).unflatten(0, (6, 2))  # 6 steps, a batch of 2.
    return F.ctc_loss(steps, labels, input_lengths=(6, 5), target_lengths=(2, 3))


def _divergence(scores: Tensor, other: Tensor) -> Tensor:
    return F.kl_div(scores.log_softmax(-1), other.softmax(-1), reduction="batchmean")


def _judged(name: str, judge: Callable[..., Tensor], *targets: Callable[[], Tensor]) -> Network:
    return Network(
        f"loss-{name}",
        lambda: Judged(judge),
        lambda: (normal(ROWS, WIDTH), *(target() for target in targets)),
        lambda loss: loss,
    )


def _classes() -> Tensor:
    return integers(CLASSES, ROWS)


def _ignoring_some() -> Tensor:
    return torch.where(torch.arange(ROWS) % 3 == 0, -100, _classes())


def _scores() -> Tensor:
    return normal(ROWS, CLASSES, seed=1)


def _bits() -> Tensor:
    return integers(2, ROWS, CLASSES).float()


def _signs() -> Tensor:
    return integers(2, ROWS) * 2.0 - 1.0


NETWORKS = [
    _judged("cross-entropy-ignore-index", F.cross_entropy, _ignoring_some),
    _judged("cross-entropy-smoothed", lambda s, t: F.cross_entropy(s, t, label_smoothing=0.1), _classes),
    _judged("cross-entropy-soft-targets", lambda s, t: F.cross_entropy(s, t.softmax(-1)), _scores),
    _judged("binary-cross-entropy-logits", F.binary_cross_entropy_with_logits, _bits),
    _judged("binary-cross-entropy", lambda s, t: F.binary_cross_entropy(s.sigmoid(), t), _bits),
    _judged("nll", lambda s, t: F.nll_loss(s.log_softmax(-1), t), _classes),
    _judged("ctc", _ctc, lambda: integers(CLASSES - 1, 2, 3) + 1),
    _judged("kl-divergence", _divergence, _scores),
    _judged("mean-square", F.mse_loss, _scores),
    _judged("l1", F.l1_loss, _scores),
    _judged("smooth-l1", F.smooth_l1_loss, _scores),
    _judged("huber", F.huber_loss, _scores),
    _judged("triplet", F.triplet_margin_loss, _scores, lambda: normal(ROWS, CLASSES, seed=2)),
    _judged("cosine", F.cosine_embedding_loss, _scores, _signs),
    _judged("margin-ranking", lambda s, t: F.margin_ranking_loss(s[:, 0], s[:, 1], t), _signs),
    _judged("multi-margin", F.multi_margin_loss, _classes),
    _judged("gaussian-nll", lambda s, t: F.gaussian_nll_loss(s, t, s.exp()), _scores),
    _judged("poisson-nll", F.poisson_nll_loss, _bits),
]
