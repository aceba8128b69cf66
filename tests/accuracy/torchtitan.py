"""What torchtitan trains, and how a rank of it is sharded: its Llama, checkpointing and FSDP2 grouping at the commits that printed figures.

Read in pytorch/torchtitan at 83c879f (March 2024), 9dec370 (December 2024) to e23bb70 (March 2025), d66b72a and d9bdfbb (autumn 2025).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from graphmem.parallel.fake_world import fake_world

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


class _Norm(nn.Module):
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


def _repeated(x: torch.Tensor, times: int) -> torch.Tensor:
    batch, tokens, heads, size = x.shape
    if times == 1:
        return x
    return x.unsqueeze(3).expand(batch, tokens, heads, times, size).reshape(batch, tokens, heads * times, size)


#: What PyTorch chose from before it preferred cuDNN on an H100; torchtitan has a list of its own since 2025, with cuDNN first since August.
_BEFORE_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class _Attention(nn.Module):
    def __init__(self, shape: Shape, cudnn: bool) -> None:
        super().__init__()
        self.backends = [SDPBackend.CUDNN_ATTENTION, *_BEFORE_CUDNN] if cudnn else _BEFORE_CUDNN
        self.repeats, self.size = shape.heads // shape.groups, shape.width // shape.heads
        self.wq = nn.Linear(shape.width, shape.heads * self.size, bias=False)
        self.wk = nn.Linear(shape.width, shape.groups * self.size, bias=False)
        self.wv = nn.Linear(shape.width, shape.groups * self.size, bias=False)
        self.wo = nn.Linear(shape.heads * self.size, shape.width, bias=False)

    def forward(self, x: torch.Tensor, table: torch.Tensor, batch: int) -> torch.Tensor:
        q, k, v = self.wq(x), self.wk(x), self.wv(x)
        q, k, v = (part.view(batch, -1, part.shape[-1] // self.size, self.size) for part in (q, k, v))
        q, k = _turned(q, k, table)
        keys, values = _repeated(k, self.repeats), _repeated(v, self.repeats)
        q, k, v = q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        with sdpa_kernel(self.backends):
            output = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        output = output.transpose(1, 2).contiguous()
        output = output.view(x.shape)
        return self.wo(output)


class _FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w1 = nn.Linear(shape.width, shape.inner, bias=False)
        self.w2 = nn.Linear(shape.inner, shape.width, bias=False)
        self.w3 = nn.Linear(shape.width, shape.inner, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class _Block(nn.Module):
    def __init__(self, shape: Shape, norm: Callable[[int], nn.Module], cudnn: bool) -> None:
        super().__init__()
        self.attention, self.feed_forward = _Attention(shape, cudnn), _FeedForward(shape)
        self.attention_norm, self.ffn_norm = norm(shape.width), norm(shape.width)

    def forward(self, x: torch.Tensor, table: torch.Tensor, batch: int) -> torch.Tensor:
        h = x + self.attention(self.attention_norm(x), table, batch)
        return h + self.feed_forward(self.ffn_norm(h))


class Llama(nn.Module):
    """``flat``: samples and tokens are one dimension between the blocks, and the logits come out in float32, as in the first commits."""

    def __init__(self, shape: Shape, norm: Callable[[int], nn.Module], flat: bool, cudnn: bool) -> None:
        super().__init__()
        self.flat = flat
        self.tok_embeddings = nn.Embedding(shape.vocabulary, shape.width)
        table = torch.empty(shape.positions, shape.width // shape.heads // 2, dtype=torch.complex64)
        self.register_buffer("freqs_cis", table)
        self.layers = nn.ModuleList(_Block(shape, norm, cudnn) for _ in range(shape.layers))
        self.norm = norm(shape.width)
        self.output = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch = tokens.shape[0]
        h = self.tok_embeddings(tokens)
        if self.flat:
            h = h.view(-1, h.shape[-1])
        for layer in self.layers:
            h = layer(h, self.freqs_cis, batch)
        if self.flat:
            h = h.view(batch, -1, h.shape[-1])
        h = self.norm(h)
        output = self.output(h)
        return output.float() if self.flat else output


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

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor], kept: bool) -> None:
        super().__init__()
        self.model, self.loss, self.kept = model, loss, kept

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self.model(tokens)
        loss = self.loss(logits, labels)
        return (loss, logits) if self.kept else (loss,)


# -- activation checkpointing ---------------------------------------------------------------------------------------

#: ``full``: all of a block runs again; ``op``: but for the results of `_SAVED` and of every other product; ``none``.
Checkpointing = Literal["none", "full", "op"]
_MM = torch.ops.aten.mm.default
_SAVED = {
    _MM, torch.ops.aten._scaled_dot_product_efficient_attention.default, torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten.max.default,
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


def _checkpointed(block: nn.Module, way: Checkpointing, early_stop: bool) -> nn.Module:
    if way == "none":
        return block
    given = {"context_fn": _contexts} if way == "op" else {}
    return checkpoint_wrapper(block, preserve_rng_state=False, early_stop=early_stop, **given)


def training(
    shape: Shape,
    checkpointing: Checkpointing,
    own_norm: bool = True,
    first: bool = False,
    chunked: bool = False,
    early_stop: bool = True,
    cudnn: bool = False,
) -> nn.Module:
    """A flavour to train, weights in float32. ``first``: as at 83c879f, when logits were float32 and stayed through backward."""
    with torch.device("meta"):
        norm: Callable[[int], nn.Module] = _Norm if own_norm else nn.RMSNorm
        model = Llama(shape, norm, first, cudnn)
    for index, block in enumerate(model.layers):
        model.layers[index] = _checkpointed(block, checkpointing, early_stop)
    return Training(model, _loss_in_chunks if chunked else _loss, first).train()


def batch(size: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels."""
    return torch.ones(size, tokens, dtype=torch.int64), torch.ones(size, tokens, dtype=torch.int64)


# -- the rank -------------------------------------------------------------------------------------------------------

#: (model, settings of every ``fully_shard``): which parameters go together, and which of them are dropped after forward.
Grouping = Callable[[Any, dict[str, Any]], None]


def last_kept(model: Any, settings: dict[str, Any]) -> None:
    """Each block a group, dropped after forward but for the last; embedding, norm and head are the root's, which keeps them."""
    for index, block in enumerate(model.layers):
        fully_shard(block, **settings, reshard_after_forward=index < len(model.layers) - 1)
    fully_shard(model, **settings)


def always(model: Any, settings: dict[str, Any]) -> None:
    """All blocks are dropped after forward; the root of that PyTorch was not."""
    for block in model.layers:
        fully_shard(block, **settings, reshard_after_forward=True)
    fully_shard(model, **settings)


def never(model: Any, settings: dict[str, Any]) -> None:
    """Nothing is dropped before backward is over."""
    for block in model.layers:
        fully_shard(block, **settings, reshard_after_forward=False)
    fully_shard(model, **settings)


def apart(model: Any, settings: dict[str, Any]) -> None:
    """Since July 2025: the embedding a group, each block, and norm with head, which alone are not dropped after forward."""
    fully_shard(model.tok_embeddings, **settings, reshard_after_forward=True)
    for block in model.layers:
        fully_shard(block, **settings, reshard_after_forward=True)
    fully_shard([model.norm, model.output], **settings, reshard_after_forward=False)
    fully_shard(model, **settings)


class _InItsStream:
    """Reduce-scatter before PyTorch 2.5, whose input came from the stream it runs in."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        with torch.cuda.stream(self._stream()):
            return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> Any:
        return torch.distributed.reduce_scatter_single(output_tensor, input_tensor, group=group, op=op, async_op=async_op)


@dataclass
class Fsdp2:
    """A rank of FSDP2: float32 shards, bf16 to compute, float32 to reduce. ``input_apart``: as before PyTorch 2.5."""

    ranks: int
    grouping: Grouping = last_kept
    input_apart: bool = False

    @contextlib.contextmanager
    def entered(self, device: str) -> Iterator[None]:
        with fake_world(self.ranks, 0):
            self._mesh: DeviceMesh = init_device_mesh(device, (self.ranks,))
            yield

    def spread(self, module: nn.Module) -> None:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model: Any = module.model
        self.grouping(model, {"mesh": self._mesh, "mp_policy": policy})
        # As its first forward would: views of shards only. Here, they belong to their layers and not to the root that loops over them.
        state = model._get_fsdp_state()
        state._lazy_init()
        if self.input_apart:
            for part in model.modules():
                if hasattr(part, "set_custom_reduce_scatter"):
                    part.set_custom_reduce_scatter(_InItsStream(lambda: state._comm_ctx.reduce_scatter_stream))

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module


class _AdamW(torch.optim.AdamW):
    """Clips norms as the loop does."""

    def clip_grad_norm_(self, most: float) -> None:
        torch.nn.utils.clip_grad_norm_([p for g in self.param_groups for p in g["params"]], most)


def foreach_adamw(parameters: Any) -> torch.optim.Optimizer:
    """The default before February 2025."""
    return _AdamW(parameters, foreach=True)


def fused_adamw(parameters: Any) -> torch.optim.Optimizer:
    """The default since."""
    return _AdamW(parameters, fused=True)
