"""Attention and the norms around it: PyTorch's own modules, and attention written out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.accuracy.network import Network, normal

WIDTH, HEADS = 32, 4


def _sequence() -> tuple[Tensor, ...]:
    return (normal(2, 12, WIDTH),)


def _two_sequences() -> tuple[Tensor, ...]:
    return normal(2, 12, WIDTH), normal(2, 9, WIDTH, seed=1)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 64),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(64, 64),
        nn.GELU(approximate="tanh"),
        nn.Linear(64, 3),
    )


def norms() -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, WIDTH),
        nn.RMSNorm(WIDTH),
        nn.Linear(WIDTH, 8),
        nn.LayerNorm(8, bias=False),
    )


def encoder(**options: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def transformer() -> nn.Module:
    return nn.Transformer(WIDTH, HEADS, 2, 2, 64, batch_first=True)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention under a causal mask, with or without its weights."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.layer(x, x, x, attn_mask=mask, need_weights=self.need_weights)


class CrossAttention(nn.Module):
    """nn.MultiheadAttention with keys and values of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(WIDTH, 24)
        self.layer = nn.MultiheadAttention(WIDTH, HEADS, kdim=24, vdim=WIDTH, add_bias_kv=True, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.layer(x, self.narrow(memory), memory)[0]


class EinsumAttention(nn.Module):
    """Attention in einsums, with an additive mask from masked_fill."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.into(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(WIDTH // HEADS)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.out(torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2))


class GroupedQueryAttention(nn.Module):
    """scaled_dot_product_attention, causal, two query heads to a key head, with rotary positions and SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key_value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    @staticmethod
    def _rotate(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] / 10 ** torch.arange(half, device=x.device)
        cosine, sine = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        return x * cosine + torch.cat([-x[..., half:], x[..., :half]], -1) * sine

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        key, value = (part.transpose(1, 2) for part in self.key_value(x).unflatten(-1, (2, 2, -1)).unbind(2))
        attended = nn.functional.scaled_dot_product_attention(
            self._rotate(query), self._rotate(key), value, is_causal=True, enable_gqa=True
        )
        x = x + attended.transpose(1, 2).flatten(2)
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


NETWORKS = [
    Network("mlp", mlp, _sequence),
    Network("layer-and-rms-norm", norms, _sequence),
    Network("transformer-encoder", encoder, _sequence),
    Network("transformer-encoder-norm-first", lambda: encoder(norm_first=True, bias=False), _sequence),
    Network("transformer", transformer, _two_sequences),
    Network("multihead-attention", lambda: SelfAttention(need_weights=False), _sequence),
    Network("multihead-attention-weights", lambda: SelfAttention(need_weights=True), _sequence),
    Network("multihead-cross-attention", CrossAttention, _two_sequences),
    Network("einsum-attention", EinsumAttention, _sequence),
    Network("grouped-query-attention", GroupedQueryAttention, _sequence),
]
