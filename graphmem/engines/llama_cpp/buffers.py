"""llama.cpp's buffers on one GPU: model, cache, compute; and those it keeps in host memory.

Sizes are those of llama.cpp's own planner (src/llama-kv-cache.cpp, llama-graph.cpp, ggml/src/ggml-alloc.c, of v0.5.0): the compute buffer is the
fullest of a few points of a layer's graph. `fixtures/llama_cpp.json` has what llama.cpp itself said for hundreds of settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graphmem.config import text_config
from graphmem.engines.llama_cpp.settings import Running
from graphmem.engines.llama_cpp.weights import ALIGNMENT, ROW, Weights
from graphmem.engines.shape import Shape
from graphmem.inference.kv_cache import CacheLayout
from graphmem.inference.kv_dtypes import KVDType, kv_dtype_named
from graphmem.inference.layer_kinds import whole
from graphmem.inference.layouts import Attention, LatentAttention, LayerCache, SlidingAttention, State
from graphmem.inspection.model import Model
from graphmem.units import round_up

#: Cells of a cache come in multiples of this.
_CELLS = 256


@dataclass(frozen=True)
class Buffers:
    """A model in llama.cpp on one GPU. Bytes are ints. ``on_gpu`` False: all of it in host memory."""

    model: Model
    tensors: Weights
    layout: CacheLayout
    shape: Shape
    settings: Running
    on_gpu: bool = True

    # -- tokens ---------------------------------------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """Caches beside each other: one for all slots, or one each."""
        return 1 if self.settings.kv_unified else self.settings.parallel

    @property
    def asked(self) -> int:
        return self.settings.ctx_size or self.layout.context or 4096

    @property
    def cells(self) -> int:
        """Tokens a stream of a full layer's cache holds."""
        padded = round_up(self.asked, _CELLS)
        return padded if self.settings.kv_unified else round_up(padded // self.settings.parallel, _CELLS)

    @property
    def batch(self) -> int:
        return min(self.asked, self.settings.batch_size)

    @property
    def window_cells(self) -> int | None:
        """The same of sliding layers: window and micro-batch; None where there are none."""
        sizes = [cache.size for cache in self.layout.attention if isinstance(cache, SlidingAttention)]
        if not sizes:
            return None
        if self.settings.swa_full:
            return self.cells
        slots = self.settings.parallel if self.settings.kv_unified else 1
        return round_up(min(self.cells, max(sizes) * slots + min(self.settings.ubatch_size, self.batch)), _CELLS)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return round_up(min(self.cells * self.streams, self.batch, self.settings.ubatch_size), self.settings.parallel)

    @property
    def outputs(self) -> int:
        """Rows of logits of a micro-batch."""
        return min(self.tokens, self.batch if self.settings.all_logits else self.settings.parallel)

    # -- cache ----------------------------------------------------------------------------------------------------

    @property
    def kinds(self) -> tuple[KVDType, KVDType]:
        return kv_dtype_named(self.settings.cache_type_k), kv_dtype_named(self.settings.cache_type_v)

    def bytes_of(self, cache: LayerCache) -> int:
        """Bytes of what a layer keeps, for every slot."""
        keys, values = self.kinds
        if isinstance(cache, LatentAttention):
            return self.cells * self.streams * keys.row(cache.latent + cache.rope) + self._row_padding(
                keys, cache.latent + cache.rope
            )
        if isinstance(cache, Attention):
            cells = self.window_cells if isinstance(cache, SlidingAttention) else self.cells
            widths = ((keys, cache.kv_heads * cache.key_size), (values, cache.kv_heads * cache.value_size))
            return sum(
                (cells or 0) * self.streams * kind.row(width) + self._row_padding(kind, width) for kind, width in widths
            )
        if isinstance(cache, State):  # always fp32, one input less than the kernel is wide
            return self.settings.parallel * cache.nbytes(4, 4, columns_less=1)
        return 0

    def _row_padding(self, kind: KVDType, width: int) -> int:
        quantized = kind.row(32) < 64 and kind.key not in ("float32", "float16", "bfloat16")
        return round_up(kind.row(ROW - width % ROW), ALIGNMENT) if self.on_gpu and quantized and width % ROW else 0

    # -- what lies where ------------------------------------------------------------------------------------------

    @property
    def first_on_gpu(self) -> int:
        """The first layer on the GPU; the output layer is the last of all, and goes there first."""
        layers = len(self.layout.layers)
        if not self.on_gpu:
            return layers + 1
        return 0 if self.settings.gpu_layers is None else max(layers + 1 - self.settings.gpu_layers, 0)

    @property
    def is_whole(self) -> bool:
        """Whether every layer is on the GPU."""
        return self.first_on_gpu == 0

    @property
    def weights(self) -> tuple[int, int]:
        """(bytes on the GPU, bytes in host memory)."""
        return self.tensors.placed(self.first_on_gpu, self.settings.cpu_moe)

    @property
    def cache(self) -> tuple[int, int]:
        """(bytes on the GPU, bytes in host memory) of keys, values and states."""
        sizes = [sum(map(self.bytes_of, layer)) for layer in self.layout.layers]
        first = min(self.first_on_gpu, len(sizes))
        return sum(sizes[first:]), sum(sizes[:first])

    # -- compute --------------------------------------------------------------------------------------------------

    @property
    def _inputs(self) -> int:
        """The graph's inputs: ids, positions of cells, and a mask for every kind of cache."""
        if not self.layout.attention:
            return 4 * self.settings.parallel + 4 * self.outputs
        keys, values = self.kinds
        flash, tokens = self.settings.flash_attention, self.tokens
        latent = any(isinstance(cache, LatentAttention) for cache in self.layout.attention)
        size = 4 * tokens + 4 * self.outputs
        for cells in filter(None, (self.cells, self.window_cells)):
            size += 8 * tokens + (2 if flash else 4) * cells * tokens
            if not latent:
                size += 8 * tokens * (1 if flash else self.shape.key_value)
        head = next((c.key_size for c in self.layout.attention if isinstance(c, Attention)), 0)
        if head % 64 == 0 and head and not latent:  # rotations that make keys and values easier to quantize
            if keys.key.startswith(("q", "iq")):
                widest = 64
                while head % (2 * widest) == 0:
                    widest *= 2
                size += 4 * widest * widest
            if values.key.startswith(("q", "iq")):
                size += 4 * 64 * 64
        return size

    @cached_property
    def points(self) -> dict[str, int]:
        """Bytes of the compute buffer at each point that may be its fullest, with all layers in one place."""
        text, tokens, inputs = text_config(self.model.spec.config), self.tokens, self._inputs
        hidden = 4 * self.shape.hidden * tokens
        output = 4 * self.shape.hidden * self.outputs
        found = {"output": output + 4 * self.shape.vocabulary * self.outputs}
        if self.tensors.joined or str(text.get("model_type")) in ("gpt-oss", "gpt_oss"):
            found["output"] += output
        if not self.layout.attention:
            state = next(iter(self.layout.states), None)
            if state is not None and state.convolution:
                channels, kernel = state.convolution
                found["output"] += hidden
                found["scan"] = 4 * tokens * (2 * self.shape.hidden + 5 * channels) + self.settings.parallel * 4 * (
                    channels * 2 * (kernel - 1) + state.recurrent_elements
                )
            return found
        query = 4 * self.shape.query * tokens
        latent = next((c for c in self.layout.attention if isinstance(c, LatentAttention)), None)
        heads = whole(text, ("num_attention_heads",)) or 0
        if latent is not None:
            found["attention"] = self._latent(text, latent, heads, hidden, inputs)
            beside = hidden + inputs + hidden
        else:
            found["attention"] = self._attention(heads, hidden, query, inputs)
            beside = hidden + inputs + (0 if self.tensors.joined else max(hidden, query)) + hidden
        if self.shape.experts:
            used, width = self.shape.top_k, self.shape.expert_width
            combined = used * self.shape.hidden
            found["experts"] = beside + 4 * tokens * (
                3 * used * width + (combined if combined > 2 * used * width else 0)
            )
        else:
            found["MLP"] = beside + 4 * tokens * 3 * self.shape.width
        return found

    def _attention(self, heads: int, hidden: int, query: int, inputs: int) -> int:
        cells = max(filter(None, (self.cells, self.window_cells)))
        if self.settings.flash_attention:
            # Keys and values of another type are copied to f16.
            copies = sum(
                2 * cells * self.streams * self.shape.key_value
                for kind in self.kinds
                if kind.key != "float16" and self.on_gpu
            )
            return hidden + inputs + (2 * query if self.tensors.joined else hidden + 2 * query) + copies
        scores = 4 * heads * cells * self.tokens
        return hidden + inputs + (query if self.tensors.joined else hidden + 2 * query) + scores

    def _latent(self, text: Mapping[str, Any], latent: LatentAttention, heads: int, hidden: int, inputs: int) -> int:
        nope, down = whole(text, ("qk_nope_head_dim",)) or 0, whole(text, ("q_lora_rank",)) or 0
        tokens = self.tokens
        query = 4 * heads * (nope + latent.rope) * tokens
        absorbed = 2 * 4 * tokens * heads * (latent.latent + latent.rope)
        scores = 0 if self.settings.flash_attention else 4 * heads * self.cells * tokens
        return 2 * hidden + inputs + 4 * down * tokens + query + absorbed + scores

    @property
    def compute(self) -> int:
        """Bytes of the compute buffer on the device that holds the layers."""
        copied = self._copied if self.on_gpu and (not self.is_whole or self.settings.cpu_moe) else 0
        own = 0 if self.on_gpu else 4 * self.tokens + 4 * self.shape.hidden * self.tokens
        return max(*self.points.values(), copied) + own

    @property
    def _copied(self) -> int:
        """With weights in host memory, batches of 32 and more still run on the GPU: the fullest point then holds a copy of a layer's."""
        if self.tokens < 32:
            return 0
        hidden = 4 * self.shape.hidden * self.tokens
        query = 4 * self.shape.query * self.tokens
        beside = hidden + self._inputs + max(hidden, query) + hidden
        experts = self.tensors.largest.get("experts", 0)
        if experts:
            used, width = self.shape.top_k, self.shape.expert_width
            up = beside + experts + 2 * 4 * self.tokens * used * width
            down = beside + 4 * self.tokens * used * width + experts + 4 * self.tokens * used * self.shape.hidden
            return max(up, down)
        return (
            2 * hidden
            + self._inputs
            + 2 * self.tensors.largest.get("attention", 0)
            + self.tensors.largest.get("mlp", 0)
            + 8 * self.shape.width * self.tokens
        )

    @property
    def host_compute(self) -> int:
        """Bytes of pinned host memory for the graph's inputs and embeddings."""
        return 4 * self.tokens + 8 * self.shape.hidden * self.tokens + self._inputs

    @property
    def output(self) -> int:
        """Bytes of pinned host memory that logits are copied to."""
        return 4 * self.shape.vocabulary * self.settings.parallel

    @property
    def total(self) -> int:
        """Everything on the GPU but its context."""
        return self.weights[0] + self.cache[0] + self.compute
