"""The teaching decoder that most public GPU snapshots ran (Stanford CS336, assignment 2), in our own words.

Only what decides memory is kept: which operators run, in which order, and how long each name keeps its tensor alive.
`x = f(x)` and `y = f(x)` differ by one live activation, so the names here are as telling as the operators.

Two editions ran. The one of 2025 gathers the cos/sin rows of each position and interleaves the rotated halves again; the
one of 2026 slices the rows and concatenates the halves, and keeps the embedding alive through the whole forward pass.
The gather went through einx, whose versions 0.3 and 0.4 turn it into different operators.

Weights are left uninitialised: on the device where these run (meta) there are no values, and allocations are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Gather = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """The dimensions of a decoder: model width, feed-forward width, layers, heads, longest context, vocabulary."""

    d_model: int
    d_ff: int
    layers: int
    heads: int
    context: int
    vocab: int = 10_000

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads


def empty_weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def _trunc_normal_(tensor: torch.Tensor) -> None:
    """As the releases that made the snapshots did it, in place; torch 2.13 redraws what is out of bounds and takes masks for it."""
    with torch.no_grad():
        tensor.uniform_(-1, 1).erfinv_().mul_(1.0).add_(0.0).clamp_(-2, 2)


def drawn_weight(*shape: int) -> nn.Parameter:
    """A weight whose draw was recorded too: made empty, then filled in place."""
    weight = nn.Parameter(torch.empty(*shape))
    _trunc_normal_(weight)
    return weight


def angles(context: int, head_dim: int) -> Tensor:
    """Rotary angles [context, head_dim / 2]."""
    return torch.outer(torch.arange(context).float(), 10_000.0 ** -(torch.arange(0, head_dim, 2).float() / head_dim))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, sequence, width] seen as [batch, heads, sequence, width / heads]; no copy."""
    batch, sequence, width = x.shape
    return x.reshape(batch, sequence, heads, width // heads).permute(0, 2, 1, 3)


def join_heads(x: Tensor) -> Tensor:
    """[batch, heads, sequence, width] copied to [batch, sequence, heads * width]."""
    batch, heads, sequence, width = x.shape
    return x.permute(0, 2, 1, 3).reshape(batch, sequence, heads * width)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def softmax(x: Tensor) -> Tensor:
    """Over the last dimension, written out; the largest values come with their (int64) places, which are dropped."""
    shifted = x - torch.max(x, dim=-1, keepdim=True)[0]
    exponentials = torch.exp(shifted)
    return exponentials / torch.sum(exponentials, dim=-1, keepdim=True)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention written out: scores, scale, mask by `where`, softmax, weighted sum."""
    scores = torch.einsum("...qd,...kd->...qk", q, k) / math.sqrt(k.shape[-1])
    scores = torch.where(mask, scores, float("-inf"))
    weights = softmax(scores)
    return torch.einsum("...qk,...kd->...qd", weights, v)


def gather_einx_03(table: Tensor, positions: Tensor) -> Tensor:
    """Rows of `table` [2, context, half] at `positions` [1, 1, sequence]: one gather on the permuted table."""
    return table.permute(2, 0, 1)[:, :, positions].permute(1, 2, 3, 4, 0)


def gather_einx_04(table: Tensor, positions: Tensor) -> Tensor:
    """The same rows by arithmetic on flat indices, which needs an int64 index for every element.

    `table` becomes the columns, so that they go first when the function ends, as einx's generated code has it.
    """
    two, context, half = table.shape
    shape = (two, *positions.shape, half)
    flat = table.reshape(-1)
    starts = torch.arange(two, dtype=torch.int32, device=table.device)
    starts = torch.multiply(starts, context * half)
    starts = starts.reshape(two, 1, 1)
    positions = positions.reshape(-1)
    positions = torch.multiply(positions, half)
    positions = positions.reshape(1, -1, 1)
    rows = torch.add(starts, positions)
    table = torch.arange(half, dtype=torch.int32, device=table.device)
    table = table.reshape(1, 1, half)
    index = torch.add(rows, table)
    index = index.reshape(-1)
    return flat[index].reshape(shape)


def weight_times(weight: Tensor, x: Tensor) -> Tensor:
    """`einsum("oi,...i->...o", weight, x)` as PyTorch 2.6 ran it: the weight is the left factor; 2.13 swaps the two."""
    return torch.einsum("oi,...i->o...", weight, x).movedim(0, -1)


class Linear(nn.Module):
    """No bias; the product is an einsum, with the input or (`weight_first`) the weight as its first operand."""

    def __init__(self, d_in: int, d_out: int, weight_first: bool = False) -> None:
        super().__init__()
        self.weight = empty_weight(d_out, d_in)
        self.weight_first = weight_first

    def forward(self, x: Tensor) -> Tensor:
        if self.weight_first:
            return weight_times(self.weight, x)
        return torch.einsum("...i,oi->...o", x, self.weight)


def whole(x: Tensor, dim: int) -> Tensor:
    """`x[..., :]` as PyTorch up to 2.8 indexed: a view whose backward makes another zeroed gradient; later ones make none."""
    return torch.ops.aten.slice.Tensor(x, dim)


class Embedding(nn.Module):
    """Rows of the weight by `weight[tokens, :]`, as an old PyTorch (`slices`) or a newer one runs it."""

    def __init__(self, vocab: int, d_model: int, slices: bool) -> None:
        super().__init__()
        self.weight = empty_weight(vocab, d_model)
        self.slices = slices

    def forward(self, tokens: Tensor) -> Tensor:
        return whole(self.weight, 1)[tokens] if self.slices else self.weight[tokens]


class RowEmbedding(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens]


class RMSNorm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        inverse = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        x = x * inverse
        return (self.weight * x).to(given)


class SwiGLU(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = Linear(d_model, d_ff)
        self.down = Linear(d_ff, d_model)
        self.up = Linear(d_model, d_ff)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))


class NamedSwiGLU(SwiGLU):
    """The same, with names that keep both projections until the end: a profiled variant of aimetrics."""

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        up = self.up(x)
        hidden = silu(gate) * up
        return self.down(hidden)


class Rope(nn.Module):
    """Rotary positions with one table [2, context, half]; `gather` is how the edition of 2025 reads its rows."""

    def __init__(self, context: int, head_dim: int, gather: Gather | None) -> None:
        super().__init__()
        self.gather = gather
        turns = angles(context, head_dim)
        self.register_buffer("table", torch.stack((torch.cos(turns), torch.sin(turns))), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        even, odd = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).permute(4, 0, 1, 2, 3).unbind(0)
        if self.gather is None:
            cos, sin = self.table[:, : x.size(-2), :].unbind(0)
        else:
            cos, sin = self.gather(self.table, positions).unbind(0)
        first = cos * even - sin * odd
        second = sin * even + cos * odd
        if self.gather is None:
            turned = torch.concat((first, second), dim=-1)
        else:
            turned = torch.cat([first.unsqueeze(-1), second.unsqueeze(-1)], dim=-1).flatten(-2)
        return turned


class SelfAttention(nn.Module):
    def __init__(self, sizes: Sizes, rope: Rope) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj = Linear(sizes.d_model, sizes.d_model)
        self.k_proj = Linear(sizes.d_model, sizes.d_model)
        self.v_proj = Linear(sizes.d_model, sizes.d_model)
        self.output_proj = Linear(sizes.d_model, sizes.d_model)
        self.rope = rope

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.size(-2)
        positions = None
        q = self.q_proj(x)
        k = self.k_proj(x)
        v = self.v_proj(x)
        q, k, v = (split_heads(each, self.heads) for each in (q, k, v))
        if self.rope.gather is not None:
            positions = torch.arange(sequence, device=x.device).reshape(1, 1, sequence)
        q = self.rope(q, positions)
        k = self.rope(k, positions)
        order = torch.arange(sequence, device=x.device)
        query, key = order.reshape(1, 1, sequence, 1), order.reshape(1, 1, 1, sequence)
        mask = query >= key
        joined = attention(q=q, k=k, v=v, mask=mask)
        joined = join_heads(joined)
        output = self.output_proj(joined)
        return output  # noqa: RET504 (a name keeps the output as the author's name did)


class Block(nn.Module):
    def __init__(self, sizes: Sizes, rope: Rope, feed_forward: type[SwiGLU]) -> None:
        super().__init__()
        self.attn = SelfAttention(sizes, rope)
        self.ffn = feed_forward(sizes.d_model, sizes.d_ff)
        self.ln1 = RMSNorm(sizes.d_model)
        self.ln2 = RMSNorm(sizes.d_model)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.ln1(x))
        between = x + attended
        fed = self.ffn(self.ln2(between))
        after = between + fed
        return after  # noqa: RET504


class BasicsLM(nn.Module):
    """The decoder of both editions: that of 2026 without `gather`, that of 2025 with the gather of its einx version."""

    def __init__(self, sizes: Sizes, gather: Gather | None = None, feed_forward: type[SwiGLU] = SwiGLU) -> None:
        super().__init__()
        self.keeps_embedding = gather is None
        self.token_embeddings = Embedding(sizes.vocab, sizes.d_model, slices=gather is not None)
        self.rope = Rope(sizes.context, sizes.head_dim, gather)
        self.layers = nn.ModuleList(Block(sizes, self.rope, feed_forward) for _ in range(sizes.layers))
        self.ln_final = RMSNorm(sizes.d_model)
        self.lm_head = Linear(sizes.d_model, sizes.vocab)

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps_embedding:
            embedded = self.token_embeddings(x)
            x = embedded
        else:
            x = self.token_embeddings(x)
        for layer in self.layers:
            x = layer(x)
        x = self.ln_final(x)
        return self.lm_head(x)
