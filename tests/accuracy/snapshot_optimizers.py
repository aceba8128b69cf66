"""The hand-written losses and optimizers of the snapshot scripts, in our own words.

They loop over parameters and make new tensors where PyTorch's own would work in place, so their temporaries are part of
the record: each is made by the same operators, in the same order, and kept by a name for as long as the author's was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def log_softmax(x: Tensor) -> Tensor:
    largest = torch.max(x, dim=-1, keepdim=True)[0]
    x = x - largest
    return x - torch.log(torch.sum(torch.exp(x), dim=-1, keepdim=True))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The course's loss: the negated log-softmax of all logits, then the targets' entries."""
    negative = -log_softmax(logits)
    return torch.mean(torch.gather(negative, -1, targets.unsqueeze(-1)))


def cross_entropy_by_index(logits: Tensor, targets: Tensor) -> Tensor:
    """kkaitlyn111's: logits at [row, target], with the row numbers made on the CPU."""
    if logits.dim() > 2:
        logits = logits.reshape(-1, logits.size(-1))
        targets = targets.reshape(-1)
    largest = torch.max(logits, dim=-1, keepdim=True).values
    logits = logits - largest
    exponentials = torch.exp(logits)
    sums = exponentials.sum(dim=-1)
    rows = torch.arange(logits.shape[0], device="cpu")
    picked = logits[rows, targets]
    losses = torch.log(sums) - picked
    return losses.mean()


def cross_entropy_by_gather(logits: Tensor, targets: Tensor) -> Tensor:
    """CTKnight's, whose source is not public; by its events: a maximum without places, a gather, one exponential."""
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    picked = shifted.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (torch.log(torch.exp(shifted).sum(dim=-1)) - picked).mean()


class OneHotCrossEntropy(nn.Module):
    """NiuHuangxiaozi's: the whole log-softmax times a one-hot matrix."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        batch = x.shape[0]
        largest, _ = torch.max(x, dim=-1, keepdim=True)
        log_probabilities = x - largest - torch.log(torch.sum(torch.exp(x - largest), dim=-1, keepdim=True))
        one_hot = torch.zeros_like(log_probabilities)
        one_hot.scatter_(-1, target.unsqueeze(-1), 1)
        loss = -torch.sum(one_hot * log_probabilities) / batch
        return loss  # noqa: RET504


class BasicsAdamW(torch.optim.Optimizer):
    """The course's AdamW; the edition of 2025 decays the weights after the step (`decay_last`), that of 2026 before."""

    def __init__(self, params: Iterable[nn.Parameter], *, decay_last: bool) -> None:
        super().__init__(params, {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01})
        self.decay_last = decay_last

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad.data
                state = self.state[p]
                lr, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]
                t = state.get("t", 1)
                scaled_lr = lr * (math.sqrt(1 - beta2**t) / (1 - beta1**t))
                if not self.decay_last:
                    p.data -= lr * group["weight_decay"] * p.data
                old_m = state.get("m", torch.zeros_like(grad))
                old_v = state.get("v", torch.zeros_like(grad))
                m = beta1 * old_m + ((1 - beta1) * grad)
                v = beta2 * old_v + ((1 - beta2) * torch.square(grad))
                p.data -= scaled_lr * m / (torch.sqrt(v) + group["eps"])
                if self.decay_last:
                    p.data -= lr * group["weight_decay"] * p.data
                state["m"] = m
                state["v"] = v
                state["t"] = t + 1


class NiuAdam(torch.optim.Optimizer):
    """NiuHuangxiaozi's: moments made with the optimizer; moments and parameters replaced, never changed in place."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"m": torch.zeros_like(p.data), "v": torch.zeros_like(p.data), "t": 0}

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                t = self.state[p]["t"] + 1
                lr, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]
                scaled_lr = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                if p.grad is None:
                    continue
                grad = p.grad.data
                m = self.state[p]["m"]
                new_m = beta1 * m + (1 - beta1) * grad
                self.state[p]["m"] = new_m
                v = self.state[p]["v"]
                new_v = beta2 * v + (1 - beta2) * grad**2
                self.state[p]["v"] = new_v
                self.state[p]["t"] = t
                p.data = p.data - scaled_lr * (new_m / (torch.sqrt(new_v) + group["eps"]))
                p.data = p.data - lr * group["weight_decay"] * p.data


class InPlaceAdamW(torch.optim.Optimizer):
    """kkaitlyn111's: moments updated in place, made at the first step; two temporaries a parameter."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01})

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad.data
                beta1, beta2 = group["beta1"], group["beta2"]
                state = self.state[p]
                if len(state) == 0:
                    state["step"] = 0
                    state["m"] = torch.zeros_like(p.data)
                    state["v"] = torch.zeros_like(p.data)
                m, v = state["m"], state["v"]
                state["step"] += 1
                m.mul_(beta1).add_(grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                root = math.sqrt(1 - beta2 ** state["step"])
                denominator = (v.sqrt() / root).add_(group["eps"])
                p.data.addcdiv_(m, denominator, value=-group["lr"] / (1 - beta1 ** state["step"]))
                p.data.add_(p.data, alpha=-group["lr"] * group["weight_decay"])
