"""silmont2000's decoder, in our own words: norm by einsum, quarter-turn rotary positions, a transposed feed-forward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.accuracy.snapshot_models.course import Linear, Sizes, angles, empty_weight, join_heads, silu, split_heads


class EinsumNorm(nn.Module):
    """RMSNorm whose sum of squares is an einsum, that is a batched product of rows with themselves."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = empty_weight(1, d_model)

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        squares = torch.einsum("...d,...d->...", x, x)
        squares = squares / x.shape[-1] + 1e-5
        rms = torch.sqrt(squares).unsqueeze(-1)
        result = x / rms * self.weight
        return result.to(given)


class RotatedRope(nn.Module):
    """Rotary positions as x * cos + (x with its pairs turned by a quarter) * sin; a table of both in every layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        turns = torch.repeat_interleave(angles(sizes.context, sizes.head_dim), 2, dim=-1)
        self.register_buffer("cos", turns.cos(), persistent=False)
        self.register_buffer("sin", turns.sin(), persistent=False)

    def quarter_turn(self, x: Tensor) -> Tensor:
        even, odd = x.view(*x.shape[:-1], -1, 2).unbind(dim=-1)
        turned = torch.stack((-odd, even), dim=-1)
        return turned.view(*x.shape)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        cos = self.cos[positions]
        sin = self.sin[positions]
        return (x * cos) + (self.quarter_turn(x) * sin)


def compared_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.einsum("...qd,...kd->...qk", q, k)
    scores = scores / (q.shape[-1] ** 0.5)
    scores = scores.masked_fill(mask == False, -1e9)  # noqa: E712
    weights = softmax_of_three(scores)
    return torch.einsum("...qk,...kd->...qd", weights, v)


def softmax_of_three(x: Tensor) -> Tensor:
    largest = x.max(dim=-1, keepdim=True).values
    numerator = torch.exp(x - largest)
    denominator = torch.sum(numerator, dim=-1, keepdim=True)
    return numerator / denominator


class RotatedSelfAttention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.k_proj, self.q_proj, self.v_proj, self.output_proj = (
            Linear(sizes.d_model, sizes.d_model) for _ in range(4)
        )
        self.rope = RotatedRope(sizes)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        k = split_heads(self.k_proj(x), self.heads)
        q = split_heads(self.q_proj(x), self.heads)
        v = split_heads(self.v_proj(x), self.heads)
        sequence = x.shape[1]
        k = self.rope(k, positions)
        q = self.rope(q, positions)
        mask = torch.tril(torch.ones(sequence, sequence, device=x.device)).bool()
        attended = compared_attention(q, k, v, mask=mask)
        joined = join_heads(attended)
        return self.output_proj(joined)


class TransposedSwiGLU(nn.Module):
    """SwiGLU in fp32 whose hidden values are [d_ff, batch, sequence]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate = empty_weight(sizes.d_ff, sizes.d_model)
        self.down = empty_weight(sizes.d_model, sizes.d_ff)
        self.up = empty_weight(sizes.d_ff, sizes.d_model)

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        gate = torch.einsum("fd,...d->f...", self.gate, x)
        up = torch.einsum("fd,...d->f...", self.up, x)
        result = torch.einsum("df,f...->...d", self.down, silu(gate) * up)
        return result.to(given)


class RotatedBlock(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ln1 = EinsumNorm(sizes.d_model)
        self.ln2 = EinsumNorm(sizes.d_model)
        self.attn = RotatedSelfAttention(sizes)
        self.ffn = TransposedSwiGLU(sizes)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        normed = self.ln1(x)
        attended = self.attn(x=normed, positions=positions)
        between = x + attended
        normed_again = self.ln2(between)
        fed = self.ffn(normed_again)
        after = between + fed
        return after  # noqa: RET504


class RotatedLM(nn.Module):
    """silmont2000's decoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.vocab, sizes.d_model)
        self.blocks = nn.ModuleList(RotatedBlock(sizes) for _ in range(sizes.layers))
        self.final_norm = EinsumNorm(sizes.d_model)
        self.final_linear = Linear(sizes.d_model, sizes.vocab)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        x = self.token_embedding(tokens)
        positions = torch.arange(x.shape[1], device=x.device)
        for block in self.blocks:
            x = block(x, positions)
        logits = self.final_linear(self.final_norm(x))
        return logits  # noqa: RET504
