"""NiuHuangxiaozi's decoder, in our own words; rotary tables and masks are made on the CPU and copied at every use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.accuracy.snapshot_models.course import RowEmbedding, Sizes, drawn_weight, join_heads, split_heads

HOST = torch.device("cpu")


class Linear(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = drawn_weight(d_out, d_in)

    def forward(self, x: Tensor) -> Tensor:
        result = torch.einsum("...i,oi->...o", x, self.weight)
        return result  # noqa: RET504


class RMSNorm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(torch.float32)
        rms = torch.sqrt(torch.mean(x**2, dim=-1, keepdim=True) + 1e-5)
        result = x / rms * self.weight
        return result.to(given)


class Rope(nn.Module):
    def __init__(self, context: int, head_dim: int) -> None:
        super().__init__()
        steps = torch.arange(0, head_dim, 2, device=HOST).float() / head_dim
        turns = torch.outer(torch.arange(context, device=HOST).float(), 10_000.0**-steps)
        self.register_buffer("sin", torch.sin(turns), persistent=False)
        self.register_buffer("cos", torch.cos(turns), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[-2], device=HOST)
        sin = self.sin[positions].to(x.device)
        cos = self.cos[positions].to(x.device)
        sin, cos = sin.unsqueeze(-1), cos.unsqueeze(-1)
        x = x.reshape(*x.shape[:-1], -1, 2)
        first = cos * x[..., :1] - sin * x[..., 1:]
        second = sin * x[..., :1] + cos * x[..., 1:]
        turned = torch.cat([first, second], dim=-1)
        turned = turned.flatten(-2)
        return turned  # noqa: RET504


def softmax(x: Tensor) -> Tensor:
    """The exponentials are made twice; the places of the largest values stay alive too."""
    largest, _ = torch.max(x, dim=-1, keepdim=True)
    return torch.exp(x - largest) / torch.sum(torch.exp(x - largest), dim=-1, keepdim=True)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    mask = mask.to(q.device)
    products = torch.einsum("...qd,...kd->...qk", q, k)
    scores = products / torch.sqrt(torch.tensor(q.shape[-1], device=products.device))
    masked = scores.masked_fill_(~mask.bool(), -float("inf"))
    weights = softmax(masked)
    result = torch.einsum("...qk,...kd->...qd", weights, v)
    return result  # noqa: RET504


class SelfAttention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.rope = Rope(sizes.context, sizes.head_dim)
        self.q_proj = Linear(sizes.d_model, sizes.d_model)
        self.k_proj = Linear(sizes.d_model, sizes.d_model)
        self.v_proj = Linear(sizes.d_model, sizes.d_model)
        self.output_proj = Linear(sizes.d_model, sizes.d_model)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.shape[-2]
        q = self.q_proj(x)
        k = self.k_proj(x)
        v = self.v_proj(x)
        q = split_heads(q, self.heads)
        k = split_heads(k, self.heads)
        v = split_heads(v, self.heads)
        q = self.rope(q)
        k = self.rope(k)
        mask = torch.tril(torch.ones(sequence, sequence, device=HOST))
        o = attention(q=q, k=k, v=v, mask=mask)
        o = join_heads(o)
        o = self.output_proj(o)
        return o  # noqa: RET504


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


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ln1 = RMSNorm(sizes.d_model)
        self.ln2 = RMSNorm(sizes.d_model)
        self.attn = SelfAttention(sizes)
        self.ffn = SwiGLU(sizes)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln1(x)
        attended = self.attn(normed)
        between = attended + x
        normed_again = self.ln2(between)
        fed = self.ffn(normed_again)
        after = fed + between
        return after  # noqa: RET504


class CopyingLM(nn.Module):
    """NiuHuangxiaozi's decoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.token_embeddings = RowEmbedding(drawn_weight(sizes.vocab, sizes.d_model))
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.ln_final = RMSNorm(sizes.d_model)
        self.lm_head = Linear(sizes.d_model, sizes.vocab)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_embeddings(x)
        for layer in self.layers:
            x = layer(x)
        x = self.ln_final(x)
        output = self.lm_head(x)
        return output  # noqa: RET504
