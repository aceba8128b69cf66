"""CTKnight's decoder, whose source is not public, read off the order and sizes of its events.

One matrix projects queries, keys and values; a mask and the positions are kept as buffers; the largest score is found
without its place; the norm's sum of squares and its scaling are einsums, so autocast runs them in bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.accuracy.snapshot_models.course import Linear, RowEmbedding, Sizes, angles, empty_weight, join_heads, silu


class EinsumNorm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        rms = torch.sqrt(torch.einsum("...d,...d->...", x, x) / x.shape[-1] + 1e-5)
        result = torch.einsum("...d,...,d->...d", x, 1.0 / rms, self.weight)
        return result.to(given)


def check_positions(positions: Tensor, limit: int) -> None:
    """One boolean a head and position, and whether all hold."""
    within = positions < limit
    within.all()


class SharedRope(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.context = sizes.context
        turns = angles(sizes.context, sizes.head_dim)
        self.register_buffer("cos", torch.cos(turns), persistent=False)
        self.register_buffer("sin", torch.sin(turns), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        check_positions(positions, self.context)
        cos = self.cos[: x.shape[-2]].to(x.dtype)
        sin = self.sin[: x.shape[-2]].to(x.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]
        first = even * cos - odd * sin
        second = even * sin + odd * cos
        return torch.stack((first, second), dim=-1).flatten(-2)


def softmax(x: Tensor) -> Tensor:
    largest = torch.amax(x, dim=-1, keepdim=True)
    exponentials = torch.exp(x - largest)
    sums = torch.sum(exponentials, dim=-1, keepdim=True)
    return exponentials / sums


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("...qd,...kd->...qk", q, k)
    masked = scores.masked_fill(~mask, float("-inf"))
    weights = softmax(masked / q.shape[-1] ** 0.5)
    return torch.einsum("...qk,...kd->...qd", weights, v)


class FusedSelfAttention(nn.Module):
    def __init__(self, sizes: Sizes, rope: SharedRope) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv_proj = Linear(sizes.d_model, 3 * sizes.d_model, weight_first=True)
        self.output_proj = Linear(sizes.d_model, sizes.d_model, weight_first=True)
        self.rope = rope
        mask = torch.ones(sizes.context, sizes.context, dtype=torch.bool).tril()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        batch, sequence, width = x.shape
        qkv = self.qkv_proj(x)
        qkv = qkv.reshape(batch, sequence, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        joined = None
        positions = positions.expand(batch, self.heads, sequence)
        q = self.rope(qkv[0], positions)
        k = self.rope(qkv[1], positions)
        joined = join_heads(attention(q, k, qkv[2], self.mask[:sequence, :sequence]))
        return self.output_proj(joined)


class NamedSwiGLU(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate = Linear(sizes.d_model, sizes.d_ff, weight_first=True)
        self.up = Linear(sizes.d_model, sizes.d_ff, weight_first=True)
        self.down = Linear(sizes.d_ff, sizes.d_model, weight_first=True)

    def forward(self, x: Tensor) -> Tensor:
        gate = silu(self.gate(x))
        up = self.up(x)
        hidden = gate * up
        return self.down(hidden)


class FusedBlock(nn.Module):
    def __init__(self, sizes: Sizes, rope: SharedRope) -> None:
        super().__init__()
        self.ln1 = EinsumNorm(sizes.d_model)
        self.attn = FusedSelfAttention(sizes, rope)
        self.ln2 = EinsumNorm(sizes.d_model)
        self.ffn = NamedSwiGLU(sizes)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        between = x + self.attn(self.ln1(x), positions)
        return between + self.ffn(self.ln2(between))


class FusedLM(nn.Module):
    """CTKnight's decoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.token_embeddings = RowEmbedding(empty_weight(sizes.vocab, sizes.d_model))
        rope = SharedRope(sizes)
        self.layers = nn.ModuleList(FusedBlock(sizes, rope) for _ in range(sizes.layers))
        self.ln_final = EinsumNorm(sizes.d_model)
        self.lm_head = Linear(sizes.d_model, sizes.vocab, weight_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_embeddings(x)
        positions = torch.arange(x.shape[1], device=x.device)
        for layer in self.layers:
            x = layer(x, positions)
        x = self.ln_final(x)
        return self.lm_head(x)
