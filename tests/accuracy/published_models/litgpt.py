"""What lit-gpt's table of resources trains: LoRA on Alpaca, by its finetune/lora.py at 8641822 (October 2023, PyTorch 2.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_RANK, _SCALING, _CHUNK = 8, 2.0, 128

#: (inputs, outputs, bias) → a frozen linear.
Linear = Callable[[int, int, bool], nn.Module]


@dataclass(frozen=True)
class Shape:
    """An entry of lit_gpt/config.py; ``rotary`` is the part of a head that turns, ``longest`` Alpaca's longest example in its tokens."""

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    rotary: float
    longest: int
    #: RMS norms, a gated MLP, no biases, MLP after attention; else layer norms, GELU, biases, MLP beside attention.
    llama: bool = False
    shared_norm: bool = False
    head_bias: bool = False
    gelu: str = "none"


PHI = Shape(24, 2048, 32, 8192, 51200, 0.5, 1044, shared_norm=True, head_bias=True, gelu="tanh")
STABLELM_3B = Shape(16, 4096, 32, 16384, 50688, 0.25, 1034)
LLAMA_7B = Shape(32, 4096, 32, 11008, 32000, 1.0, 1304, llama=True)
LLAMA_13B = Shape(40, 5120, 40, 13824, 32000, 1.0, 1304, llama=True)


class _Mean(torch.autograd.Function):
    """The mean of rows before PyTorch 2.2, which kept its input for backward though only its shape is needed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.mean(x, dim=-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return grad.expand(x.shape) / x.shape[-1]


class _Norm(nn.Module):
    """lit-gpt's RMS norm of then, in the model's own type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = _Mean.apply(x * x)
        scaled = x * torch.rsqrt(mean + 1e-5)
        return self.weight * scaled


class _QKV(nn.Module):
    """The linear of q, k and v with LoRA on q and v, whose updates are spread over all three, with zeros for k."""

    def __init__(self, width: int, linear: Linear, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.linear = linear(width, 3 * width, bias)
        self.dropout = nn.Dropout(0.05)
        self.lora_A = nn.Parameter(torch.empty(2 * _RANK, width))
        self.lora_B = nn.Parameter(torch.empty(2 * width, _RANK))

    def _spread(self, update: torch.Tensor) -> torch.Tensor:
        update = update.transpose(0, 1)
        result = update.new_zeros((*update.shape[:-1], 3 * self.width))
        result = result.view(-1, 3 * self.width)
        places = torch.empty(2 * self.width, dtype=torch.int64, device=result.device)
        result = result.index_copy(1, places, update.reshape(-1, 2 * self.width))
        return result.view((*update.shape[:-1], 3 * self.width)).transpose(0, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frozen = self.linear(x)
        inner = F.linear(self.dropout(x), self.lora_A)
        outer = F.conv1d(inner.transpose(-2, -1), self.lora_B.unsqueeze(-1), groups=2).transpose(-2, -1)
        update = self._spread(outer) * _SCALING
        return frozen + update


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions; the caches are float32, so the products are too."""
    first, second = x[..., : x.size(-1) // 2], x[..., x.size(-1) // 2 :]
    rotated = torch.cat((-second, first), dim=-1)
    result = (x * cos) + (rotated * sin)
    return result.type_as(x)


class _Attention(nn.Module):
    def __init__(self, shape: Shape, linear: Linear) -> None:
        super().__init__()
        self.heads, self.size = shape.heads, shape.width // shape.heads
        self.turned = int(shape.rotary * self.size)
        self.attn = _QKV(shape.width, linear, not shape.llama)
        self.proj = linear(shape.width, shape.width, not shape.llama)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.size()
        qkv = self.attn(x)
        qkv = qkv.view(batch, tokens, self.heads, 3, self.size).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((1, 1, 1), dim=2)
        q, k, v = (part.reshape(batch, -1, tokens, self.size) for part in (q, k, v))
        q_turned = _turned(q[..., : self.turned], cos, sin)
        k_turned = _turned(k[..., : self.turned], cos, sin)
        q = torch.cat((q_turned, q[..., self.turned :]), dim=-1)
        k = torch.cat((k_turned, k[..., self.turned :]), dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.size**-0.5).transpose(1, 2)
        y = y.reshape(batch, tokens, width)
        return self.proj(y)


class _MLP(nn.Module):
    def __init__(self, shape: Shape, linear: Linear) -> None:
        super().__init__()
        self.gelu = shape.gelu
        self.fc = linear(shape.width, shape.inner, True)
        self.proj = linear(shape.inner, shape.width, True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x)
        x = F.gelu(x, approximate=self.gelu)
        return self.proj(x)


class _GatedMLP(nn.Module):
    def __init__(self, shape: Shape, linear: Linear) -> None:
        super().__init__()
        self.fc_1 = linear(shape.width, shape.inner, False)
        self.fc_2 = linear(shape.width, shape.inner, False)
        self.proj = linear(shape.inner, shape.width, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc_1(x)
        up = self.fc_2(x)
        x = F.silu(gate) * up
        return self.proj(x)


def _norm(shape: Shape) -> nn.Module:
    return _Norm(shape.width) if shape.llama else nn.LayerNorm(shape.width)


class _Block(nn.Module):
    def __init__(self, shape: Shape, linear: Linear) -> None:
        super().__init__()
        self.llama = shape.llama
        self.norm_1 = _norm(shape)
        self.attn = _Attention(shape, linear)
        self.norm_2 = None if shape.shared_norm else _norm(shape)
        self.mlp = (_GatedMLP if shape.llama else _MLP)(shape, linear)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        n_1 = self.norm_1(x)
        h = self.attn(n_1, cos, sin)
        if self.llama:
            x = x + h
            return x + self.mlp(self.norm_2(x))
        n_2 = n_1 if self.norm_2 is None else self.norm_2(x)
        return x + h + self.mlp(n_2)


def _loss(logits: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy, a chunk of the logits at a time."""
    chunks = [chunk.reshape(-1, chunk.size(-1)) for chunk in logits]
    wanted = [part.reshape(-1) for part in targets.split(logits[0].size(1), dim=1)]
    losses = [
        F.cross_entropy(chunk, part, ignore_index=-1, reduction="none")
        for chunk, part in zip(chunks, wanted, strict=True)
    ]
    return torch.cat(losses).mean()


class Finetuning(nn.Module):
    """The model and the loop's part from a batch to its loss, with what the loop's variables hold during backward.

    Fabric hands the logits out in float32; the caches of rotary positions are float32 and as long as the longest example.
    """

    def __init__(self, shape: Shape, linear: Linear) -> None:
        super().__init__()
        self.lm_head = linear(shape.width, shape.vocabulary, shape.head_bias)
        self.wte = nn.Embedding(shape.vocabulary, shape.width)
        self.h = nn.ModuleList(_Block(shape, linear) for _ in range(shape.layers))
        self.ln_f = _norm(shape)
        turned = int(shape.rotary * shape.width / shape.heads)
        self.register_buffer("cos", torch.empty(shape.longest, turned, dtype=torch.float32))
        self.register_buffer("sin", torch.empty(shape.longest, turned, dtype=torch.float32))

    def _logits(self, ids: torch.Tensor) -> list[torch.Tensor]:
        cos, sin = self.cos[: ids.size(1)], self.sin[: ids.size(1)]
        x = self.wte(ids)
        for block in self.h:
            x = block(x, cos, sin)
        x = self.ln_f(x)
        return [self.lm_head(part) for part in x.split(_CHUNK, dim=1)]

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits = self._logits(ids)
        logits = [chunk.to(torch.float32) for chunk in logits]
        logits[-1] = logits[-1][..., :-1, :]
        loss = _loss(logits, targets[..., 1:])
        return loss / 128, logits


def frozen(inputs: int, outputs: int, bias: bool) -> nn.Module:
    """A linear that is not quantized."""
    return nn.Linear(inputs, outputs, bias)


def finetuning(shape: Shape, linear: Linear = frozen) -> nn.Module:
    """In bf16, only LoRA's matrices trained."""
    with torch.device("meta"):
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Finetuning(shape, linear)
        finally:
            torch.set_default_dtype(default)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model.train()


def batch(size: int, shape: Shape) -> tuple[Any, ...]:
    """The first batch: it holds the longest example, and the others are padded to it."""
    tokens = torch.ones(size, shape.longest, dtype=torch.int64)
    return tokens, tokens.clone()
