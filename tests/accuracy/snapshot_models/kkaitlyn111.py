"""kkaitlyn111's decoder, in our own words: vector norm, rotary positions filled into a zeroed copy, the mask of every head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.accuracy.snapshot_models.course import (
    Linear,
    RowEmbedding,
    Sizes,
    angles,
    empty_weight,
    join_heads,
    split_heads,
)


class VectorNorm(nn.Module):
    """RMSNorm by `linalg.vector_norm`, scaled by an einsum."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        rms = torch.sqrt(norm**2 / x.shape[-1] + 1e-5)
        normed = x / rms
        result = torch.einsum("d,bsd->bsd", self.weight, normed)
        return result.to(given)


class FilledRope(nn.Module):
    """Rotary positions written into a zeroed copy, one half of the pairs at a time."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        turns = angles(sizes.context, sizes.head_dim)
        self.register_buffer("table", torch.stack((torch.cos(turns), torch.sin(turns)), dim=-1), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        cos = self.table[positions, :, 0]
        sin = self.table[positions, :, 1]
        cos = cos.unsqueeze(1)
        sin = sin.unsqueeze(1)
        turned = torch.zeros_like(pairs)
        turned[..., 0] = cos * pairs[..., 0] - sin * pairs[..., 1]
        turned[..., 1] = sin * pairs[..., 0] + cos * pairs[..., 1]
        result = turned.reshape(x.shape)
        return result  # noqa: RET504


def filled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention with the mask of every head compared to False and filled in."""
    scores = torch.einsum("...qd,...kd->...qk", q, k)
    scores = scores / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(mask == False, -1e9)  # noqa: E712
    weights = softmax_keeping_largest(scores)
    output = torch.einsum("...qk,...kd->...qd", weights, v)
    return output  # noqa: RET504


def softmax_keeping_largest(x: Tensor) -> Tensor:
    largest = torch.max(x, dim=-1, keepdim=True)[0]
    exponentials = torch.exp(x - largest)
    sums = torch.sum(exponentials, dim=-1, keepdim=True)
    output = exponentials / sums
    return output  # noqa: RET504


class FilledSelfAttention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj, self.k_proj, self.v_proj, self.output_proj = (
            Linear(sizes.d_model, sizes.d_model, weight_first=True) for _ in range(4)
        )
        self.rope = FilledRope(sizes)

    def forward(self, x: Tensor) -> Tensor:
        batch, sequence, _ = x.shape
        flat_q = self.q_proj(x)
        flat_k = self.k_proj(x)
        flat_v = self.v_proj(x)
        q = split_heads(flat_q, self.heads)
        k = split_heads(flat_k, self.heads)
        v = split_heads(flat_v, self.heads)
        positions = torch.arange(sequence, device=x.device).unsqueeze(0).expand(batch, -1)
        q = self.rope(q, positions)
        k = self.rope(k, positions)
        mask = torch.triu(torch.ones(sequence, sequence, device=x.device), diagonal=1).to(torch.bool)
        mask = ~mask
        mask = mask.unsqueeze(0).unsqueeze(0).expand(batch, self.heads, -1, -1)
        result = filled_attention(q, k, v, mask=mask)
        result = join_heads(result)
        result = self.output_proj(result)
        return result  # noqa: RET504


class NamedSwiGLU(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate = Linear(sizes.d_model, sizes.d_ff, weight_first=True)
        self.down = Linear(sizes.d_ff, sizes.d_model, weight_first=True)
        self.up = Linear(sizes.d_model, sizes.d_ff, weight_first=True)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        up = self.up(x)
        activated = torch.sigmoid(gate) * gate
        hidden = activated * up
        result = self.down(hidden)
        return result  # noqa: RET504


class FilledBlock(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ln1 = VectorNorm(sizes.d_model)
        self.attn = FilledSelfAttention(sizes)
        self.ln2 = VectorNorm(sizes.d_model)
        self.ffn = NamedSwiGLU(sizes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln1(x)
        h = self.attn(h)
        x = x + h
        h = self.ln2(x)
        h = self.ffn(h)
        x = x + h
        return x  # noqa: RET504


class FilledLM(nn.Module):
    """kkaitlyn111's decoder: a rotary table in every layer, the mask of every head, weights first in each einsum."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.token_embeddings = RowEmbedding(empty_weight(sizes.vocab, sizes.d_model))
        self.layers = nn.ModuleList(FilledBlock(sizes) for _ in range(sizes.layers))
        self.ln_final = VectorNorm(sizes.d_model)
        self.lm_head = Linear(sizes.d_model, sizes.vocab, weight_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_embeddings(x)
        for layer in self.layers:
            x = layer(x)
        x = self.ln_final(x)
        x = self.lm_head(x)
        return x  # noqa: RET504
