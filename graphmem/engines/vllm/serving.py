"""What ``vllm serve`` is started with, as far as memory goes; what cannot be is refused at the door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from graphmem.engines.vllm.versions import Usage
from graphmem.errors import GraphmemError, nearest


@dataclass(frozen=True)
class Serving:
    """vLLM's own options, in its words; None: its default, by version and GPU."""

    version: str | None = None
    #: Whether the V1 engine runs; None: as the version decides.
    v1: bool | None = None
    #: ``server`` (``vllm serve``) or ``llm`` (the offline ``LLM`` class), which have defaults of their own.
    usage: Usage = "server"
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    tensor_parallel_size: int = 1
    kv_cache_dtype: str = "auto"
    #: ``float16``, ``bfloat16`` or ``float32``; None: the checkpoint's.
    dtype: str | None = None
    #: Quantize linear weights while loading: a key of `parameters.schemes.SCHEMES`; None: as the checkpoint has them.
    quantization: str | None = None
    enforce_eager: bool = False
    max_loras: int = 0
    max_lora_rank: int = 16
    #: Layers of a draft model (EAGLE, MTP) whose keys and values are kept beside the model's.
    draft_layers: int = 0

    def __post_init__(self) -> None:
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise GraphmemError(f"gpu-memory-utilization {share}: is a share of the GPU, above 0 and at most 1: 0.9")
        for name, value in (
            ("max-model-len", self.max_model_len), ("max-num-seqs", self.max_num_seqs), ("max-num-batched-tokens", self.max_num_batched_tokens),
            ("block-size", self.block_size), ("tensor-parallel-size", self.tensor_parallel_size), ("max-lora-rank", self.max_lora_rank),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise GraphmemError(f"{name} {value}: must be 1 or more")
        if self.block_size is not None and self.block_size % 16 and self.block_size not in (1, 8):
            raise GraphmemError(f"block-size {self.block_size}: vLLM's attention kernels take multiples of 16")
        for name, value in (("max-loras", self.max_loras), ("draft-layers", self.draft_layers)):
            if value < 0:
                raise GraphmemError(f"{name} {value}: must be 0 or more")
        if self.usage not in get_args(Usage):
            raise GraphmemError(f"usage {self.usage!r}: {nearest(str(self.usage), get_args(Usage))}")
