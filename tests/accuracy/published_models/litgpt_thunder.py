"""What litgpt's extensions/thunder/pretrain.py trains without Thunder: TinyLlama from scratch (101e31d, May 2024, PyTorch 2.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_LAYERS, _WIDTH, _HEADS, _GROUPS, _INNER, _VOCABULARY = 22, 2048, 32, 4, 5632, 32000
_SIZE = _WIDTH // _HEADS
#: Tokens of a sample, and samples of a batch: the script's micro_batch_size.
_TOKENS, _BATCH = 2048, 4
#: Batches an update: 512 samples.
_ACCUMULATED = 128


class _Norm(nn.Module):
    """litgpt's RMS norm, which computes in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(_WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype
        x = x.float()
        mean = torch.mean(x * x, dim=-1, keepdim=True)
        scaled = x * torch.rsqrt(mean + 1e-5)
        scaled = scaled.to(dtype=dtype)
        return scaled * self.weight


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions; the caches have the model's type."""
    first, second = x[..., : x.size(-1) // 2], x[..., x.size(-1) // 2 :]
    rotated = torch.cat((-second, first), dim=-1)
    result = (x * cos) + (rotated * sin)
    return result.to(dtype=x.dtype)


class _Attention(nn.Module):
    """Grouped queries; keys and values are repeated for each."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(_WIDTH, (_HEADS + 2 * _GROUPS) * _SIZE, bias=False)
        self.proj = nn.Linear(_WIDTH, _WIDTH, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.size()
        queries = _HEADS // _GROUPS
        qkv = self.attn(x)
        qkv = qkv.view(batch, tokens, _GROUPS, queries + 2, _SIZE).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((queries, 1, 1), dim=2)
        k = k.expand(batch, _GROUPS, queries, tokens, _SIZE)
        v = v.expand(batch, _GROUPS, queries, tokens, _SIZE)
        q, k, v = (part.reshape(batch, -1, tokens, _SIZE) for part in (q, k, v))
        q_turned = _turned(q[..., :_SIZE], cos, sin)
        k_turned = _turned(k[..., :_SIZE], cos, sin)
        q = torch.cat((q_turned, q[..., _SIZE:]), dim=-1)
        k = torch.cat((k_turned, k[..., _SIZE:]), dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=_SIZE**-0.5).transpose(1, 2)
        y = y.reshape(batch, tokens, _WIDTH)
        return self.proj(y)


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(_WIDTH, _INNER, bias=False)
        self.fc_2 = nn.Linear(_WIDTH, _INNER, bias=False)
        self.proj = nn.Linear(_INNER, _WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.fc_1(x)
        up = self.fc_2(x)
        x = F.silu(gate) * up
        return self.proj(x)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.attn, self.norm_2, self.mlp = _Norm(), _Attention(), _Norm(), _MLP()

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        normed = self.norm_1(x)
        attended = self.attn(normed, cos, sin)
        x = attended + x
        return self.mlp(self.norm_2(x)) + x


class TinyLlama(nn.Module):
    """1,100,048,384 parameters, as the script prints; Fabric hands the logits out in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(_WIDTH, _VOCABULARY, bias=False)
        self.wte = nn.Embedding(_VOCABULARY, _WIDTH)
        self.h = nn.ModuleList(_Block() for _ in range(_LAYERS))
        self.ln_f = _Norm()
        self.register_buffer("cos", torch.empty(_TOKENS, _SIZE))
        self.register_buffer("sin", torch.empty(_TOKENS, _SIZE))

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        cos, sin = self.cos[: ids.size(1)], self.sin[: ids.size(1)]
        x = self.wte(ids)
        for block in self.h:
            x = block(x, cos, sin)
        x = self.ln_f(x)
        return self.lm_head(x)

    def _converted(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self._logits(ids)
        return logits.to(torch.float32)

    def _loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self._converted(ids)
        logits, targets = logits.reshape(-1, logits.size(-1)), targets.reshape(-1)
        return F.cross_entropy(logits, targets)

    def forward(self, data: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids = data[:, :_TOKENS].contiguous()
        targets = data[:, 1 : _TOKENS + 1].contiguous()
        loss = self._loss(ids, targets)
        return loss / _ACCUMULATED, loss, ids, targets


class Accumulated(torch.optim.AdamW):
    """The fused AdamW, which steps at every second backward: what is alive in one depends on no more of them."""

    _every = 2

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, fused=True)
        self._done = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        if self._done % self._every == 0:
            super().zero_grad(set_to_none)

    def step(self) -> None:  # type: ignore[override]
        self._done += 1
        if self._done % self._every == 0:
            super().step()


#: Steps until gradients are added to with the optimizer's state there: two for an update, two more.
STEPS = 4


def pretraining() -> nn.Module:
    """All of it trained, in bf16."""
    with torch.device("meta"):
        return TinyLlama().to(torch.bfloat16).train()


def batch() -> torch.Tensor:
    """Samples of 2048 tokens and the next."""
    return torch.ones(_BATCH, _TOKENS + 1, dtype=torch.int64)
