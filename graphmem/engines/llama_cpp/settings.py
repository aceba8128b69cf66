"""What llama.cpp is started with, as far as memory goes; what cannot be is refused at the door."""

from __future__ import annotations

from dataclasses import dataclass

from graphmem.errors import GraphmemError, nearest
from graphmem.inference.kv_dtypes import kv_dtype_named

#: ``--cache-type-k`` and ``--cache-type-v``.
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


@dataclass(frozen=True)
class Running:
    """llama-server's own options, in its words."""

    #: ``-c``: tokens of the cache, of all slots together; None or 0: the model's own context.
    ctx_size: int | None = None
    batch_size: int = 2048
    ubatch_size: int = 512
    #: ``-np``: slots.
    parallel: int = 1
    #: ``-ngl``: layers on the GPU, the output layer among them; None: all.
    gpu_layers: int | None = None
    flash_attention: bool = True
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    #: Whether slots share one cache (``--kv-unified``).
    kv_unified: bool = True
    #: Whether sliding layers keep every token (``--swa-full``).
    swa_full: bool = False
    #: Whether logits of a whole micro-batch are made, as by libllama itself, its tools, and servers before 2026; else one row a slot.
    all_logits: bool = False
    #: ``--cpu-moe``: experts in host memory.
    cpu_moe: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            ("batch-size", self.batch_size), ("ubatch-size", self.ubatch_size), ("parallel", self.parallel),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise GraphmemError(f"{name} {value}: must be 1 or more")
        if self.ctx_size is not None and self.ctx_size < 0:
            raise GraphmemError(f"ctx-size {self.ctx_size}: must be 0 (the model's own) or more")
        if self.gpu_layers is not None and self.gpu_layers < 0:
            raise GraphmemError(f"gpu-layers {self.gpu_layers}: must be 0 or more")
        for name, kind in (("cache-type-k", self.cache_type_k), ("cache-type-v", self.cache_type_v)):
            if kind not in CACHE_TYPES:
                raise GraphmemError(f"{name} {kind!r}: {nearest(kind, CACHE_TYPES)}")
        if not self.flash_attention and kv_dtype_named(self.cache_type_v).row(32) < 64:
            raise GraphmemError(
                f"cache-type-v {self.cache_type_v}: llama.cpp quantizes values with flash attention only"
            )
