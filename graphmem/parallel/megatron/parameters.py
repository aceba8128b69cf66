"""Weights of a rank, tensor by tensor, as Megatron-Core shards them (core/tensor_parallel/layers.py, core/models/gpt/gpt_model.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from graphmem.errors import GraphmemError
from graphmem.parallel.megatron.architecture import Architecture
from graphmem.parallel.megatron.settings import Megatron
from graphmem.parallel.megatron.stages import Chunk
from graphmem.units import round_up


@dataclass(frozen=True)
class Weight:
    """One parameter of a rank. ``matrix``: of a linear layer, whose gradient product may be accumulated as it is made."""

    name: str
    shape: tuple[int, ...]
    expert: bool = False
    matrix: bool = False
    #: How many there are: experts are alike.
    count: int = 1

    @property
    def each(self) -> int:
        """Elements of one."""
        return math.prod(self.shape)

    @property
    def numel(self) -> int:
        return self.count * self.each


def check(model: Architecture, run: Megatron) -> None:
    """Whether tensor and expert parallelism divide the model.

    Raises:
        GraphmemError: they do not; names the numbers.
    """
    for what, size in (("attention heads", model.heads), ("MLP columns", model.ffn)):
        if size % run.tp:
            raise GraphmemError(f"tp {run.tp} does not divide {size:,} {what}")
    if model.kv_heads % run.tp and run.tp % model.kv_heads:
        raise GraphmemError(f"tp {run.tp} and {model.kv_heads} KV heads: one must divide the other")
    if model.experts is not None and model.experts.count % run.ep:
        raise GraphmemError(f"ep {run.ep} does not divide {model.experts.count} experts")
    if model.experts is None and run.ep > 1:
        raise GraphmemError(f"ep {run.ep}: the model has no experts")


def vocabulary(model: Architecture, run: Megatron) -> int:
    """Rows of the embedding on a rank, padded so that every rank has as many (training/vocab_utils.py)."""
    return round_up(model.vocabulary, run.make_vocab_size_divisible_by * run.tp) // run.tp


def weights(model: Architecture, run: Megatron, chunk: Chunk) -> Iterator[Weight]:
    """Those of a chunk, in the order they are registered."""
    rows = vocabulary(model, run)
    if chunk.embedding or chunk.predictors:
        yield Weight("word embeddings", (rows, model.hidden))
        if chunk.embedding and model.positions:
            yield Weight("position embeddings", (model.positions, model.hidden))
    for number in chunk.layers:
        yield from layer(model, run, model.has_experts(number))
    if chunk.head:
        yield from _norm(model, model.hidden)
    for _ in range(chunk.predictors):
        yield from (
            *_norm(model, model.hidden),
            *_norm(model, model.hidden),
            Weight("eh_proj", (model.hidden // run.tp, 2 * model.hidden), matrix=True),
        )
        yield from layer(model, run, model.experts is not None)
        yield from _norm(model, model.hidden)
    if chunk.head and not (model.tied and (chunk.embedding or chunk.predictors)):
        yield Weight("output layer", (rows, model.hidden), matrix=True)


def layer(model: Architecture, run: Megatron, experts: bool) -> Iterator[Weight]:
    """Those of a transformer layer."""
    yield from _attention(model, run)
    yield from _norm(model, model.hidden)
    if not experts:
        yield from _mlp(model, "mlp", model.ffn // run.tp, model.bias)
        return
    mixture = model.experts
    assert mixture is not None
    yield Weight("router", (mixture.count, model.hidden))
    for weight in _mlp(model, "experts", mixture.ffn // run.expert_tp, model.bias, expert=True):
        yield replace(weight, count=mixture.count // run.ep)
    if mixture.shared:
        yield from _mlp(model, "shared expert", mixture.shared // run.tp, bias=False)


def query_columns(model: Architecture, run: Megatron) -> int:
    """Of a rank's queries."""
    return model.heads // run.tp * model.head_size


def key_columns(model: Architecture, run: Megatron) -> int:
    """Of a rank's keys, and as many of its values; where there are more ranks than KV heads, each has a copy of one."""
    return max(model.kv_heads // run.tp, 1) * model.head_size


def _norm(model: Architecture, width: int) -> Iterator[Weight]:
    yield Weight("norm", (width,))
    if not model.rms_norm:
        yield Weight("norm bias", (width,))


def _attention(model: Architecture, run: Megatron) -> Iterator[Weight]:
    hidden, latent = model.hidden, model.latent
    yield from _norm(model, hidden)
    if latent is not None:
        yield from _latent(model, run)
        return
    queries, keys = query_columns(model, run), key_columns(model, run)
    yield Weight("linear_proj", (hidden, queries), matrix=True)
    yield Weight("linear_qkv", (queries + 2 * keys, hidden), matrix=True)
    if model.bias:
        yield Weight("linear_proj bias", (hidden,))
    if model.bias or model.qkv_bias:
        yield Weight("linear_qkv bias", (queries + 2 * keys,))
    if model.qk_norm:
        yield from (*_norm(model, model.head_size), *_norm(model, model.head_size))


def _latent(model: Architecture, run: Megatron) -> Iterator[Weight]:
    latent, heads = model.latent, model.heads // run.tp
    assert latent is not None
    if latent.q_rank:
        yield Weight("linear_q_down_proj", (latent.q_rank, model.hidden), matrix=True)
        yield Weight("linear_q_up_proj", (heads * (latent.nope + latent.rope), latent.q_rank), matrix=True)
        yield from _norm(model, latent.q_rank) if model.qk_norm else ()
    else:
        yield Weight("linear_q_proj", (heads * (latent.nope + latent.rope), model.hidden), matrix=True)
    yield Weight("linear_kv_down_proj", (latent.kv_rank + latent.rope, model.hidden), matrix=True)
    yield Weight("linear_kv_up_proj", (heads * (latent.nope + latent.value), latent.kv_rank), matrix=True)
    yield from _norm(model, latent.kv_rank) if model.qk_norm else ()
    yield Weight("linear_proj", (model.hidden, heads * latent.value), matrix=True)


def _mlp(model: Architecture, name: str, columns: int, bias: bool, expert: bool = False) -> Iterator[Weight]:
    first = (2 if model.gated else 1) * columns
    yield Weight(f"{name} fc1", (first, model.hidden), expert, matrix=True)
    yield Weight(f"{name} fc2", (model.hidden, columns), expert, matrix=True)
    if bias:
        yield Weight(f"{name} fc1 bias", (first,), expert)
        yield Weight(f"{name} fc2 bias", (model.hidden,), expert)
