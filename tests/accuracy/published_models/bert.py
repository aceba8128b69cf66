"""What Hugging Face's guide for one GPU trains: a BERT-large classifier, in January 2022 (transformers 4.15, PyTorch 1.10)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, BertConfig, BertForSequenceClassification
from transformers.optimization import Adafactor


class _Softmax(torch.autograd.Function):
    """Softmax before PyTorch 1.11: ``_softmax_backward_data`` took the input where it now takes its dtype, so it was saved too."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        result = torch.softmax(scores, -1)
        ctx.save_for_backward(scores, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        scores, result = ctx.saved_tensors
        return torch._softmax_backward_data(grad, result, -1, scores.dtype)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT's attention of that release, step by step."""
    scores = torch.matmul(query, key.transpose(-1, -2))
    scores = scores / query.shape[-1] ** 0.5
    scores = scores + attention_mask
    weights = _Softmax.apply(scores)
    weights = nn.functional.dropout(weights, 0.1, module.training)
    return torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous(), weights


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor:
    """The mask of that release: one row of zeros for every sample."""
    return torch.zeros(kwargs["batch_size"], 1, 1, kwargs["kv_length"], device=kwargs.get("device"))


AttentionInterface.register("bert_2022", _attention)
AttentionMaskInterface.register("bert_2022", _mask)


def classifier(checkpointing: bool = False) -> nn.Module:
    """bert-large-uncased with two labels: 335,143,938 parameters, as the source prints."""
    config = BertConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24, attn_implementation="bert_2022"
    )  # fmt: skip
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    if checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name it had then still works
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    return model.train()


def batch(size: int) -> dict[str, torch.Tensor]:
    """512 tokens a sample and its label."""
    return {"input_ids": torch.ones(size, 512, dtype=torch.int64), "labels": torch.ones(size, dtype=torch.int64)}


class Accumulated:
    """An optimizer that steps every ``every`` backwards, and zeroes gradients in place after it, as PyTorch 1 does by default."""

    def __init__(self, optimizer: torch.optim.Optimizer, every: int) -> None:
        self._optimizer, self._every, self._done = optimizer, every, 0

    @property
    def state(self) -> Any:
        return self._optimizer.state

    def zero_grad(self) -> None:
        if self._done % self._every == 0:
            self._optimizer.zero_grad(set_to_none=False)

    def step(self) -> None:
        self._done += 1
        if self._done % self._every == 0:
            self._optimizer.step()


class TransformersAdamW(torch.optim.Optimizer):
    """transformers' own AdamW, the Trainer's default then: a parameter at a time, with one temporary of its size."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 5e-5})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["exp_avg"].mul_(0.9).add_(parameter.grad, alpha=0.1)
            state["exp_avg_sq"].mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
            denominator = state["exp_avg_sq"].sqrt().add_(1e-8)
            parameter.addcdiv_(state["exp_avg"], denominator, value=-5e-5)


def adafactor(parameters: Any) -> torch.optim.Optimizer:
    """As the Trainer makes it."""
    return Adafactor(parameters, lr=5e-5, scale_parameter=False, relative_step=False)
