"""What torchtitan trains at the commits that printed figures: its Llama, its loss and its activation checkpointing.

Read in pytorch/torchtitan at 83c879f (March 2024), 9dec370 (December 2024) to e23bb70 (March 2025), d66b72a and d9bdfbb (autumn 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

# -- the model ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A flavour in models/llama. ``positions``: rows of the rotary table."""

    layers: int
    width: int
    heads: int
    groups: int
    inner: int
    vocabulary: int
    positions: int


#: The table of the first commits is twice as long as a sequence may be, not as it is.
LLAMA2_7B = Shape(32, 4096, 32, 32, 11008, 32000, 2 * 32768)
LLAMA3_8B = Shape(32, 4096, 32, 8, 14336, 128256, 8192)


class OwnNorm(nn.Module):
    """Its own RMS norm, which computes in float32 and scales in the type of the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    @staticmethod
    def _scaled(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = self._scaled(x.float()).type_as(x)
        return scaled * self.weight


def _turned(q: torch.Tensor, k: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions, as complex products in float32."""
    q_pairs = torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2))
    k_pairs = torch.view_as_complex(k.float().reshape(*k.shape[:-1], -1, 2))
    table = table[: q.shape[1]].view(1, q.shape[1], 1, -1)
    q_turned = torch.view_as_real(q_pairs * table).flatten(3)
    k_turned = torch.view_as_real(k_pairs * table).flatten(3)
    return q_turned.type_as(q), k_turned.type_as(k)


def repeated(x: torch.Tensor, times: int) -> torch.Tensor:
    batch, tokens, heads, size = x.shape
    if times == 1:
        return x
    return x.unsqueeze(3).expand(batch, tokens, heads, times, size).reshape(batch, tokens, heads * times, size)


#: What PyTorch chose from before it preferred cuDNN on an H100; torchtitan has a list of its own since 2025, with cuDNN first since August.
BEFORE_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class _Attention(nn.Module):
    def __init__(self, shape: Shape, cudnn: bool) -> None:
        super().__init__()
        self.backends = [SDPBackend.CUDNN_ATTENTION, *BEFORE_CUDNN] if cudnn else BEFORE_CUDNN
        self.repeats, self.size = shape.heads // shape.groups, shape.width // shape.heads
        self.wq = nn.Linear(shape.width, shape.heads * self.size, bias=False)
        self.wk = nn.Linear(shape.width, shape.groups * self.size, bias=False)
        self.wv = nn.Linear(shape.width, shape.groups * self.size, bias=False)
        self.wo = nn.Linear(shape.heads * self.size, shape.width, bias=False)

    def forward(self, x: torch.Tensor, table: torch.Tensor, batch: int) -> torch.Tensor:
        q, k, v = self.wq(x), self.wk(x), self.wv(x)
        q, k, v = (part.view(batch, -1, part.shape[-1] // self.size, self.size) for part in (q, k, v))
        q, k = _turned(q, k, table)
        keys, values = repeated(k, self.repeats), repeated(v, self.repeats)
        q, k, v = q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        with sdpa_kernel(self.backends, set_priority=True):
            output = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        output = output.transpose(1, 2).contiguous()
        output = output.view(*x.shape[:-1], -1)
        return self.wo(output)


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.width, shape.inner, bias=False)
        self.w2 = nn.Linear(shape.inner, shape.width, bias=False)
        self.w3 = nn.Linear(shape.width, shape.inner, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


Module = Callable[[], nn.Module]


class Block(nn.Module):
    """A norm and attention, a norm and a gated MLP."""

    def __init__(self, attention: Module, feed_forward: Module, norm: Module) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention(), feed_forward()
        self.attention_norm, self.ffn_norm = norm(), norm()

    def forward(self, x: torch.Tensor, table: torch.Tensor, batch: int) -> torch.Tensor:
        h = x + self.attention(self.attention_norm(x), table, batch)
        return h + self.feed_forward(self.ffn_norm(h))


class Decoder(nn.Module):
    """Embedding, blocks and head. ``flat``: samples and tokens are one dimension between; ``wide``: logits leave it in float32."""

    def __init__(self, shape: Shape, block: Module, norm: Module, table: torch.Tensor, flat: bool, wide: bool) -> None:
        super().__init__()
        self.flat, self.wide = flat, wide
        self.tok_embeddings = nn.Embedding(shape.vocabulary, shape.width)
        self.register_buffer("table", table)
        self.layers = nn.ModuleList(block() for _ in range(shape.layers))
        self.norm = norm()
        self.output = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch = tokens.shape[0]
        h = self.tok_embeddings(tokens)
        if self.flat:
            h = h.view(-1, h.shape[-1])
        for layer in self.layers:
            h = layer(h, self.table, batch)
        h = self.norm(h)
        if self.flat:
            h = h.view(batch, h.shape[0] // batch, h.shape[-1])
        output = self.output(h)
        return output.float() if self.wide else output


def llama(
    shape: Shape, norm: Callable[[int], nn.Module] = OwnNorm, cudnn: bool = False, first: bool = False
) -> Decoder:
    """Weights in float32. ``first``: as in the first commits, flat and wide."""
    with torch.device("meta"):
        make_norm = partial(norm, shape.width)
        block = partial(Block, partial(_Attention, shape, cudnn), partial(FeedForward, shape), make_norm)
        table = torch.empty(shape.positions, shape.width // shape.heads // 2, dtype=torch.complex64)
        return Decoder(shape, block, make_norm, table, flat=first, wide=first)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(0, 1))


#: Parts of the sequence whose loss is worked out on its own.
_CHUNKS = 8


def _loss_in_chunks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As torchtune's: the logits are there in bf16, a part of them in float32."""
    parts = zip(logits.chunk(_CHUNKS, 1), labels.chunk(_CHUNKS, 1), strict=True)
    losses = [_loss(part, wanted) for part, wanted in parts]
    return torch.stack(losses).sum() / _CHUNKS


class Training(nn.Module):
    """The loop's part from a batch to its loss. ``kept``: the loop has a name for the logits until the next are there."""

    def __init__(self, model: nn.Module, chunked: bool, kept: bool) -> None:
        super().__init__()
        self.model, self.chunked, self.kept = model, chunked, kept

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.model(tokens)
        loss = (_loss_in_chunks if self.chunked else _loss)(logits, labels)
        return (loss, logits) if self.kept else (loss,)


# -- activation checkpointing ---------------------------------------------------------------------------------------

#: ``full``: all of a block runs again; ``op``: but for the results of `_SAVED` and of every other product; ``none``.
Checkpointing = Literal["none", "full", "op"]
_MM = torch.ops.aten.mm.default
_SAVED = {
    _MM, torch.ops.aten._scaled_dot_product_efficient_attention.default, torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten.max.default, torch.ops._c10d_functional.reduce_scatter_tensor.default,
}  # fmt: skip


def _contexts() -> Any:
    """Products are counted in forward and in what runs again, from the start of a block; those of even number are not saved."""
    products = {False: 0, True: 0}

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        saved = operator in _SAVED
        if operator is _MM:
            products[context.is_recompute] += 1
            saved = products[context.is_recompute] % 2 == 1
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _wrapped(block: nn.Module, way: Checkpointing, early_stop: bool) -> nn.Module:
    if way == "none":
        return block
    given = {"context_fn": _contexts} if way == "op" else {}
    return checkpoint_wrapper(block, preserve_rng_state=False, early_stop=early_stop, **given)


def checkpointed(model: Decoder, way: Checkpointing, early_stop: bool = True) -> Decoder:
    """Blocks wrapped. ``early_stop``: what runs again ends with the last result that backward needs."""
    for index, block in enumerate(model.layers):
        model.layers[index] = _wrapped(block, way, early_stop)
    return model


def batch(size: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels."""
    return torch.ones(size, tokens, dtype=torch.int64), torch.ones(size, tokens, dtype=torch.int64)
