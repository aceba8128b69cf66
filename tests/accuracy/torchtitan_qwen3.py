"""torchtitan's Qwen3 (experiments/qwen3 at d66b72a, September 2025): norms of queries and keys, rotary positions in the model's own type."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

from tests.accuracy.torchtitan import BEFORE_CUDNN, Block, Decoder, FeedForward, Shape, repeated

#: A head is wider than the width over the heads.
_SIZE = 128
QWEN3_32B = Shape(64, 5120, 64, 8, 25600, 151936, 4096)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x[..., : _SIZE // 2], x[..., _SIZE // 2 :]
    turned = (x * cos) + (torch.cat((-second, first), dim=-1) * sin)
    return turned.type_as(x)


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.repeats = shape.heads // shape.groups
        self.q_norm, self.k_norm = nn.RMSNorm(_SIZE, eps=1e-6), nn.RMSNorm(_SIZE, eps=1e-6)
        self.wq = nn.Linear(shape.width, shape.heads * _SIZE, bias=False)
        self.wk = nn.Linear(shape.width, shape.groups * _SIZE, bias=False)
        self.wv = nn.Linear(shape.width, shape.groups * _SIZE, bias=False)
        self.wo = nn.Linear(shape.heads * _SIZE, shape.width, bias=False)

    def forward(self, x: torch.Tensor, table: torch.Tensor, batch: int) -> torch.Tensor:
        q, k, v = self.wq(x), self.wk(x), self.wv(x)
        q, k, v = (part.view(batch, -1, part.shape[-1] // _SIZE, _SIZE) for part in (q, k, v))
        q = self.q_norm(q)
        k = self.k_norm(k)
        table = table[: q.shape[1]].view(-1, q.shape[1], 1, 2 * _SIZE)
        cos, sin = table[..., :_SIZE].to(q.dtype), table[..., _SIZE:].to(q.dtype)
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        keys, values = repeated(k, self.repeats), repeated(v, self.repeats)
        q, k, v = q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        with sdpa_kernel(BEFORE_CUDNN):
            output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=_SIZE**-0.5)
        output = output.transpose(1, 2).contiguous()
        output = output.view(batch, -1, output.shape[-1] * output.shape[-2])
        return self.wo(output)


def qwen3(shape: Shape) -> Decoder:
    """Weights in float32."""
    with torch.device("meta"):
        norm = partial(nn.RMSNorm, shape.width, eps=1e-6)
        block = partial(Block, partial(_Attention, shape), partial(FeedForward, shape), norm)
        return Decoder(shape, block, norm, torch.empty(shape.positions, 2 * _SIZE), flat=False, wide=False)
