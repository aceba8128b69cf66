"""vLLM's budget: utilization × GPU − weights − profiling peak − other memory = the pool of blocks, and what fits in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

from graphmem.config import architectures, named_dtype, text_config
from graphmem.dtypes import from_torch
from graphmem.engines.served import layout_of
from graphmem.engines.shape import Shape, shape_of
from graphmem.engines.vllm.groups import Pool, pool
from graphmem.engines.vllm.overhead import Calibrated, graph_estimate, graphs, non_torch, with_context
from graphmem.engines.vllm.profile import Profile, profile, uses_v2_runner
from graphmem.engines.vllm.serving import Serving
from graphmem.engines.vllm.specs import Spec, specs_of
from graphmem.engines.vllm.versions import Release, Scheduling, release, scheduling
from graphmem.engines.vllm.weights import Loaded, Lora, loaded
from graphmem.errors import GraphmemError, nearest
from graphmem.inference.kv_cache import CacheLayout
from graphmem.inference.kv_dtypes import KVDType, kv_dtype_named
from graphmem.inference.layouts import Attention, LatentAttention
from graphmem.inspection.model import Model
from graphmem.parameters.schemes import SCHEMES, Scheme
from graphmem.tracing.device import Device

#: What ``--kv-cache-dtype`` may be.
_KV_DTYPES = ("auto", "bfloat16", "float16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla", "nvfp4")


@dataclass(frozen=True)
class Budget:
    """A model started in vLLM on a GPU, from its settings. Bytes are ints, and of one GPU of ``tensor_parallel_size``."""

    model: Model
    layout: CacheLayout
    shape: Shape
    #: `weights.loaded` of this model. Remembered, because the questions the other way round ask for the same weights many times.
    load: Callable[..., Loaded]
    device: Device
    settings: Serving

    def __post_init__(self) -> None:
        assert self.device.memory is not None
        heads, tp = self.shape.query, self.settings.tensor_parallel_size
        size = next((c.key_size for c in self.layout.attention if isinstance(c, Attention)), 0)
        count = heads // size if size else 0
        if count and count % tp:
            raise GraphmemError(f"tensor-parallel-size {tp}: does not divide the model's {count} attention heads")
        most, asked = self.layout.context, self.settings.max_model_len
        if most is not None and asked is not None and asked > most:
            raise GraphmemError(
                f"max-model-len {asked:,}: the model's config has {most:,} positions; vLLM refuses more"
            )
        if asked is None and most is None:
            raise GraphmemError("max-model-len: the config names no context length; say how long requests may be")

    # -- what runs ------------------------------------------------------------------------------------------------

    @cached_property
    def release(self) -> Release:
        return release(self.settings.version, self.device.capability, self.settings.v1)

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest request."""
        return self.settings.max_model_len or self.layout.context or 0

    @cached_property
    def schedule(self) -> Scheduling:
        given = self.settings
        return scheduling(
            self.release, given.usage, self.total, self.device.name, self.max_model_len, given.max_num_seqs,
            given.max_num_batched_tokens, self.shape.multimodal, self._chunks,
        )  # fmt: skip

    @property
    def _chunks(self) -> bool | None:
        """V0 does not chunk prefills by itself with windows or adapters; None: as it decides."""
        windows = any(cache.window is not None for cache in self.layout.attention)
        return False if windows or self.settings.max_loras else None

    @property
    def tokens_in_flight(self) -> int:
        """Tokens of batches that hold blocks at once."""
        return self.schedule.max_num_batched_tokens * self.release.steps_in_flight

    @cached_property
    def dtype(self) -> str:
        """What the model computes in. ``auto`` makes float16 of fp32 checkpoints before 0.9, then bfloat16 where the GPU has it."""
        name = self.settings.dtype or named_dtype(self.model.spec.config) or "bfloat16"
        try:
            known = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}[from_torch(name).name]
        except KeyError:
            raise GraphmemError(f"dtype {name!r}: {nearest(name, ('float16', 'bfloat16', 'float32'))}") from None
        if self.settings.dtype is not None or known == "float16":
            return known
        if self.release.since("0.9"):
            return "bfloat16" if self._has_bfloat16 else "float16"
        return "float16" if known == "float32" else known

    @property
    def _has_bfloat16(self) -> bool:
        return self.device.capability >= (8, 0)

    @property
    def bfloat16_refused(self) -> bool:
        """vLLM raises on a GPU that has no bfloat16: if it was asked for, before 0.9 also if the checkpoint is in it."""
        return self.dtype == "bfloat16" and not self._has_bfloat16

    @property
    def model_bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    @cached_property
    def kv(self) -> KVDType:
        """How keys and values are stored; ``auto`` is the model's dtype."""
        name = self.settings.kv_cache_dtype
        if name == "fp8_ds_mla" and not any(isinstance(cache, LatentAttention) for cache in self.layout):
            raise GraphmemError(
                "kv-cache-dtype fp8_ds_mla: DeepSeek's own layout of latents, which this model has not; use fp8"
            )
        return kv_dtype_named(self.dtype if name == "auto" else "fp8" if name == "fp8_ds_mla" else name, _KV_DTYPES)

    # -- what it takes --------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Bytes of the GPU."""
        assert self.device.memory is not None
        return self.device.memory

    @property
    def utilization(self) -> float:
        return self.settings.gpu_memory_utilization or self.release.utilization

    @property
    def requested(self) -> int:
        """Bytes vLLM means to use."""
        return (
            math.ceil(self.total * self.utilization)
            if self.release.since("0.33")
            else int(self.total * self.utilization)
        )

    @property
    def scheme(self) -> Scheme | None:
        """What linear weights are quantized to while loading; None: they stay as the checkpoint has them."""
        key = self.settings.quantization
        if key is None:
            return None
        schemes = {scheme.key: scheme for scheme in SCHEMES}
        if key not in schemes:
            raise GraphmemError(f"quantization {key!r}: {nearest(key, schemes)}")
        if self.model.is_quantized:
            raise GraphmemError(f"quantization {key!r}: the checkpoint is quantized already; leave it out")
        return schemes[key]

    @property
    def weights(self) -> Loaded:
        heads = next((c.kv_heads for c in self.layout.attention if isinstance(c, Attention)), 1)
        return self.load(
            self.release, self.model_bytes, self.settings.tensor_parallel_size, heads, self.device.capability, self.scheme,
            Lora(self.settings.max_loras, self.settings.max_lora_rank),
        )  # fmt: skip

    @property
    def weight_bits(self) -> float:
        """Bits of a weight, as people say them: of a packed checkpoint the average of all that it stores."""
        if self.scheme is not None:
            return self.scheme.bits
        return self.model.stored_bits if self.model.is_quantized else 8 * self.model_bytes

    @cached_property
    def profile(self) -> Profile:
        return profile(
            self.shape, self.schedule, self.release, self.model_bytes, self.settings.tensor_parallel_size, self.device.capability,
            self.device.sms or 108, architectures(self.model.spec.config),
        )  # fmt: skip

    @cached_property
    def non_torch(self) -> Calibrated:
        grown = non_torch(self.device.capability, self.settings.tensor_parallel_size)
        return with_context(grown, self.device.context) if self.release.counts_context else grown

    @cached_property
    def graphs(self) -> Calibrated:
        """What CUDA graphs will take; outside the budget before 0.20."""
        if self.settings.enforce_eager:
            return Calibrated(0, 0, 0, "enforce-eager: no graphs are captured")
        return graphs(self.release, self.schedule, self.shape)

    @property
    def graphs_planned(self) -> int:
        """What the budget sets aside for graphs."""
        return 0 if self.settings.enforce_eager else graph_estimate(self.release, self.schedule, self.shape)

    @cached_property
    def runner(self) -> int:
        """Buffers of the runner, counted in the budget since 0.27: input embeddings and tables of blocks."""
        if not self.release.since("0.27"):
            return 0
        tables = 2 if uses_v2_runner(self.shape, self.release) else 1
        blocks = -(-self.max_model_len // self.block_size)
        return (
            self.schedule.max_num_batched_tokens * self.shape.hidden * self.model_bytes
            + tables * 4 * self.schedule.max_num_seqs * blocks
        )

    @property
    def beside_cache(self) -> int:
        """Everything the budget holds but the pool."""
        return (
            self.weights.total
            + self.profile.peak
            + self.profile.kept
            + self.runner
            + self.non_torch.nbytes
            + self.graphs_planned
        )

    @property
    def available(self) -> int:
        """Bytes for the pool: what the log calls "Available KV cache memory". Below zero: nothing is left."""
        return self.requested - self.beside_cache

    # -- what fits ------------------------------------------------------------------------------------------------

    @property
    def block_size(self) -> int:
        """Tokens of a block, before hybrids make it larger: 16; 64 for latents (FlashMLA)."""
        latent = any(isinstance(cache, LatentAttention) for cache in self.layout)
        return self.settings.block_size or (
            64 if latent and self.release.since("0.8.5") and self.device.capability >= (9, 0) else 16
        )

    @property
    def cached_layers(self) -> CacheLayout:
        """The model's layers and a draft model's."""
        return self.layout.with_draft_layers(self.settings.draft_layers)

    @cached_property
    def specs(self) -> list[Spec]:
        """What each layer's cache takes."""
        state = text_config(self.model.spec.config)
        named = state.get("mamba_ssm_cache_dtype") or state.get("mamba_ssm_dtype")
        wide = 4 if named == "float32" and self.release.since("0.12") else None
        return specs_of(
            list(self.cached_layers), self.release, self.kv, self.block_size, self.max_model_len, self.settings.tensor_parallel_size, self.model_bytes, wide,
            self.settings.kv_cache_dtype == "fp8_ds_mla",
        )  # fmt: skip

    @cached_property
    def pool(self) -> Pool:
        return pool(self.specs, self.release)

    @property
    def blocks(self) -> int:
        return self.pool.num_blocks(max(self.available, 0))

    @property
    def tokens(self) -> int:
        """What the log calls "GPU KV cache size"."""
        return self.pool.tokens(self.release, self.blocks, self.max_model_len, self.tokens_in_flight)

    @property
    def concurrency(self) -> float:
        """Requests of ``max_model_len`` tokens that run at once."""
        return self.pool.concurrency(self.blocks, self.max_model_len, self.tokens_in_flight)

    def request_bytes(self, tokens: int) -> int:
        """Bytes of blocks that one request of ``tokens`` holds at most."""
        return math.ceil(self.pool.blocks_of_request(tokens, self.tokens_in_flight)) * self.pool.block_bytes

    def left(self, tokens: int, requests: int) -> int:
        """Bytes of the pool left beside ``requests`` of ``tokens`` each; below zero they do not run at once."""
        return self.blocks * self.pool.block_bytes - requests * self.request_bytes(tokens)

    @property
    def starts(self) -> bool:
        """Whether vLLM starts: the pool holds one request of ``max_model_len``."""
        return self.available > 0 and self.left(self.max_model_len, 1) >= 0

    def again(self, **settings: object) -> Budget:
        """The same with other settings: fields of `Serving`."""
        return replace(self, settings=replace(self.settings, **settings))  # type: ignore[arg-type]


def budget(model: Model, device: Device, settings: Serving) -> Budget:
    """A model's budget on a GPU.

    Raises:
        GraphmemError: the settings cannot be; the GPU's memory is not known; the model keeps no cache that can be told (`layout_of`).
    """
    if device.memory is None:
        raise GraphmemError("vLLM makes its pool as large as the GPU allows; add --gpu NAME or --memory SIZE")
    layout = layout_of(model)
    shape = shape_of(model, layout)
    return Budget(model, layout, shape, cache(partial(loaded, model, shape)), device, settings)
