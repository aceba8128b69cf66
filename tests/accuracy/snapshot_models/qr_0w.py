"""QR-0W's decoder, in our own words: positions made once, mask made in every layer, rotated halves stacked and copied."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.accuracy.snapshot_models.course import RowEmbedding, Sizes, drawn_weight, join_heads, split_heads


class Linear(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = drawn_weight(d_out, d_in)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,...i->...o", self.weight, x)


class RMSNorm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        rms = torch.sqrt(torch.mean(x**2, dim=-1, keepdim=True) + 1e-5)
        result = (x / rms) * self.weight
        return result.to(given)


class SwiGLU(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.w1 = Linear(sizes.d_model, sizes.d_ff)
        self.w2 = Linear(sizes.d_ff, sizes.d_model)
        self.w3 = Linear(sizes.d_model, sizes.d_ff)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.w1(x)
        activated = gate * torch.sigmoid(gate)
        up = self.w3(x)
        hidden = activated * up
        return self.w2(hidden)


class Rope(nn.Module):
    """cos and sin tables in every layer; their making was recorded in two of the snapshots."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        pairs = torch.arange(0, sizes.head_dim, 2, dtype=torch.float32)
        frequencies = 1.0 / (10_000.0 ** (pairs / sizes.head_dim))
        positions = torch.arange(sizes.context, dtype=torch.float32)
        turns = torch.einsum("p,f->pf", positions, frequencies)
        self.register_buffer("cos", torch.cos(turns), persistent=False)
        self.register_buffer("sin", torch.sin(turns), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        cos = self.cos[positions]
        sin = self.sin[positions]
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        even = pairs[..., 0]
        odd = pairs[..., 1]
        first = even * cos - odd * sin
        second = even * sin + odd * cos
        return interleave(first, second)


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Two halves stacked in front, moved to the back and copied into place."""
    both = torch.stack((first, second))
    return both.permute(1, 2, 3, 4, 0).reshape(*first.shape[:-1], -1)


def softmax(x: Tensor) -> Tensor:
    largest = torch.max(x, dim=-1, keepdim=True).values
    shifted = x - largest
    exponentials = torch.exp(shifted)
    sums = torch.sum(exponentials, dim=-1, keepdim=True)
    return exponentials / sums


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("...qd,...kd->...qk", q, k) / (q.shape[-1] ** 0.5)
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = softmax(scores)
    return torch.einsum("...qk,...kd->...qd", weights, v)


class SelfAttention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj = Linear(sizes.d_model, sizes.d_model)
        self.k_proj = Linear(sizes.d_model, sizes.d_model)
        self.v_proj = Linear(sizes.d_model, sizes.d_model)
        self.out_proj = Linear(sizes.d_model, sizes.d_model)
        self.rope = Rope(sizes)

    def forward(self, x: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        sequence = x.shape[1]
        q = self.q_proj(x)
        k = self.k_proj(x)
        v = self.v_proj(x)
        q = split_heads(q, self.heads)
        k = split_heads(k, self.heads)
        v = split_heads(v, self.heads)
        q = self.rope(q, positions)
        k = self.rope(k, positions)
        if mask is None:
            mask = torch.tril(torch.ones(sequence, sequence, device=x.device, dtype=torch.bool))
        attended = attention(q, k, v, mask)
        output = join_heads(attended)
        return self.out_proj(output)


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1 = RMSNorm(sizes.d_model)
        self.norm2 = RMSNorm(sizes.d_model)
        self.attn = SelfAttention(sizes)
        self.ffn = SwiGLU(sizes)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        between = x + self.attn(self.norm1(x), positions=positions)
        output = between + self.ffn(self.norm2(between))
        return output  # noqa: RET504


class MadeOnceLM(nn.Module):
    """QR-0W's decoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.token_embeddings = RowEmbedding(drawn_weight(sizes.vocab, sizes.d_model))
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.ln_final = RMSNorm(sizes.d_model)
        self.lm_head = Linear(sizes.d_model, sizes.vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embeddings(tokens)
        positions = torch.arange(x.shape[1], device=x.device)
        for layer in self.layers:
            x = layer(x, positions)
        x = self.ln_final(x)
        logits = self.lm_head(x)
        return logits  # noqa: RET504
