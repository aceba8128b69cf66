"""What one layer's cache takes in vLLM's paged pool: bytes of a page, and of one request at its longest.

The arithmetic of vllm/v1/kv_cache_interface.py, without vLLM. A page holds ``block`` tokens of one layer; a state takes one page however long the
sequence is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from graphmem.engines.vllm.versions import Release
from graphmem.errors import GraphmemError
from graphmem.inference.kv_dtypes import KVDType
from graphmem.inference.layouts import (
    Attention,
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    IndexedAttention,
    LatentAttention,
    LayerCache,
    Nothing,
    SlidingAttention,
    State,
)

#: DeepSeek's fp8 layout of a latent: 512 fp8 values, four fp32 scales, 64 bf16 rotary values.
FP8_DS_MLA = 656


@dataclass(frozen=True)
class Spec:
    """One layer's cache. Layers with equal specs can share a pool."""

    #: ``full``, ``sliding``, ``chunked``, ``mla``, ``state`` or ``cross``.
    kind: str
    #: Tokens a page holds.
    block: int
    #: Bytes of one token (of a whole state).
    per_token: int
    #: Window or chunk in tokens, encoder tokens of a cross-attention; 0 where there is none.
    size: int = 0
    #: Bytes a page is padded to, where pages of other layers are larger.
    padded: int | None = None
    #: ``per_token`` in words.
    arithmetic: str = field(default="", compare=False)

    @property
    def page(self) -> int:
        """Bytes of a page."""
        own = self.per_token if self.kind == "state" else self.block * self.per_token
        return max(own, self.padded or 0)

    def blocks(self, max_model_len: int, batched_tokens: int) -> int:
        """Pages one request of ``max_model_len`` tokens needs at most."""
        if self.kind == "state":
            return 1
        if self.kind == "sliding":
            return math.ceil(min(self.size - 1 + batched_tokens, max_model_len) / self.block) + 1
        if self.kind == "chunked":
            return math.ceil(min(self.size + batched_tokens, max_model_len) / self.block)
        return math.ceil((self.size if self.kind == "cross" else max_model_len) / self.block)

    def bytes_of_request(self, max_model_len: int, batched_tokens: int) -> int:
        return self.blocks(max_model_len, batched_tokens) * self.page


def kv_heads_of_rank(kv_heads: int, tp: int) -> int:
    """KV heads on each of ``tp`` GPUs; with more GPUs than heads, heads are replicated.

    Raises:
        GraphmemError: neither divides the other.
    """
    if kv_heads % tp and tp % kv_heads:
        raise GraphmemError(
            f"tp {tp}: does not divide the {kv_heads} KV heads, nor they it; use a divisor of {kv_heads}"
        )
    return max(1, kv_heads // tp)


def specs_of(
    caches: list[LayerCache], release: Release, kv: KVDType, block: int, max_model_len: int, tp: int = 1, model_bytes: int = 2,
    state_bytes: int | None = None, deepseek_fp8: bool = False,
) -> list[Spec]:  # fmt: skip
    """The specs of a model's layers, in their order; layers that keep nothing have none; one with an indexer has two.

    Args:
        model_bytes: of an element of the model's dtype, in which convolution inputs are kept.
        state_bytes: of an element of a recurrent state; None: the model's dtype, as vLLM's ``auto``.
        deepseek_fp8: latents in DeepSeek's own fp8 layout (``fp8_ds_mla``).

    Raises:
        GraphmemError: ``tp`` does not go with the heads, or vLLM's pages of a kind are not known.
    """
    paged = _Paged(release, kv, block, max_model_len, tp, model_bytes, state_bytes or model_bytes, deepseek_fp8)
    return _aligned([spec for cache in caches for spec in paged.specs(cache)], paged)


def of_layers(layers: Iterable[LayerCache], specs: list[Spec]) -> list[tuple[LayerCache, tuple[Spec, ...]]]:
    """Which of ``specs``, as `specs_of` gave them for these layers, are whose."""
    left = iter(specs)
    counts = [
        (cache, 0 if isinstance(cache, Nothing) else 2 if getattr(cache, "indexer", 0) else 1) for cache in layers
    ]
    return [(cache, tuple(next(left) for _ in range(count))) for cache, count in counts]


@dataclass(frozen=True)
class _Paged:
    """How layers are paged, the same for all of them."""

    release: Release
    kv: KVDType
    block: int
    max_model_len: int
    tp: int
    model_bytes: int
    state_bytes: int
    deepseek_fp8: bool

    def specs(self, cache: LayerCache) -> list[Spec]:
        if isinstance(cache, Nothing):
            return []
        if isinstance(cache, State):
            return [self._state(cache)]
        if isinstance(cache, LatentAttention):
            row = FP8_DS_MLA if self.deepseek_fp8 else self.kv.row(cache.latent + cache.rope)
            said = (
                f"{FP8_DS_MLA} B of DeepSeek's fp8 layout"
                if self.deepseek_fp8
                else f"({cache.latent} latent + {cache.rope} RoPE) × {self.kv.words}"
            )
            return [Spec("mla", self.block, row, arithmetic=said), *self._indexer(cache.indexer)]
        if isinstance(cache, CompressedAttention):
            raise GraphmemError(
                "compressed attention (DeepSeek-V4): how vLLM pages it is not known to graphmem; use --engine transformers"
            )
        return [
            replace(self._attention(cache), arithmetic=self._words(cache)),
            *self._indexer(cache.indexer if isinstance(cache, IndexedAttention) else 0),
        ]

    def _attention(self, cache: Attention) -> Spec:
        row = self._row(cache)
        if not self.release.v1:  # V0 pages every layer alike
            return Spec("full", self.block, row)
        # Llama 4 runs with the hybrid manager switched off from 0.11 on: chunks are kept as full attention.
        if isinstance(cache, ChunkedAttention):
            whole = self.release.since("0.11")
            return Spec("full" if whole else "chunked", self.block, row, 0 if whole else cache.size)
        if isinstance(cache, SlidingAttention):
            return Spec("sliding", self.block, row, cache.size)
        if isinstance(cache, CrossAttention):
            return Spec("cross", self.block, row, cache.tokens or 0)
        return Spec("full", self.block, row)

    def _value_size(self, cache: Attention) -> int:
        # Values were padded to the keys' size before 0.18 (FullAttentionSpec.head_size_v).
        return cache.value_size if self.release.since("0.18") else cache.key_size

    def _row(self, cache: Attention) -> int:
        heads = kv_heads_of_rank(cache.kv_heads, self.tp)
        return heads * (self.kv.row(cache.key_size) + self.kv.row(self._value_size(cache)))

    def _words(self, cache: Attention) -> str:
        kept = Attention(kv_heads_of_rank(cache.kv_heads, self.tp), cache.key_size, self._value_size(cache))
        return f"{kept.arithmetic} × {self.kv.words}"

    def _indexer(self, size: int) -> list[Spec]:
        """Keys of a sparse-attention indexer, in fp8 with an fp32 scale, in a cache of their own."""
        return (
            [Spec("mla", self.block, size + 4, arithmetic=f"({size} fp8 indexer keys + 4 B of scale)")] if size else []
        )

    def _state(self, state: State) -> Spec:
        own = (
            4 if state.name == "delta attention (KDA)" else self.state_bytes
        )  # model_executor/layers/mamba/mamba_utils.py
        nbytes = state.nbytes(self.model_bytes, own, columns_less=1, shards=self.tp)
        shared = f", shared by {self.tp} GPUs" if self.tp > 1 else ""
        return Spec(
            "state",
            self.max_model_len,
            nbytes,
            arithmetic=state.explained(self.model_bytes, own, columns_less=1) + shared,
        )


def _aligned(specs: list[Spec], paged: _Paged) -> list[Spec]:
    """Hybrids with states: attention pages grow until they hold a state, and states are padded to them (vllm/model_executor/models/config.py)."""
    states = [spec.page for spec in specs if spec.kind == "state"]
    attention = [spec for spec in specs if spec.kind != "state"]
    if not states or not attention:
        return specs
    alignment = 16
    if any(spec.kind == "mla" for spec in attention) and paged.release.since("0.11.2"):
        alignment = 128 if paged.release.since("0.28") else 64
    row = max(spec.per_token for spec in attention)
    block = max(alignment * math.ceil(max(states) / (alignment * row)), paged.block)
    return [replace(spec, padded=block * row) if spec.kind == "state" else replace(spec, block=block) for spec in specs]
