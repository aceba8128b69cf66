"""What vLLM takes when the user says nothing, by version and GPU; and which rules of accounting a version follows.

Read from the source archives on PyPI (vllm/engine/arg_utils.py, vllm/config/, vllm/v1/worker/gpu_worker.py, vllm/v1/core/kv_cache_utils.py). A
version between two that were read takes the older one's rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packaging.version import InvalidVersion, Version

from graphmem.errors import GraphmemError
from graphmem.units import GIB

#: The newest release read.
NEWEST = "0.33.0"
_OLDEST = Version("0.4.0")

Usage = Literal["server", "llm"]


@dataclass(frozen=True)
class Release:
    """A version of vLLM and the engine in it that runs (V0 up to 0.7, V1 from 0.8 unless the GPU is too old for it)."""

    version: Version
    v1: bool

    def since(self, version: str) -> bool:
        return self.version >= Version(version)

    def __str__(self) -> str:
        return f"{self.version} ({'V1' if self.v1 else 'V0'} engine)"

    @property
    def utilization(self) -> float:
        return 0.92 if self.since("0.20") else 0.9

    @property
    def graphs_in_budget(self) -> bool:
        """Whether an estimate of CUDA graphs' memory is taken out of the budget (default since 0.20)."""
        return self.since("0.20")

    @property
    def tokens_by_concurrency(self) -> bool:
        """Whether the log's "GPU KV cache size" is concurrency × max_model_len (since 0.20.2) or blocks × block size."""
        return self.since("0.20.2")

    @property
    def counts_context(self) -> bool:
        """Whether everything used on the device beside PyTorch's own is taken out of the budget, the CUDA context and other processes among it:
        0.6.4, and V1 before 0.9. Others count what grew since the process began.
        """
        return self.since("0.6.4") and not self.since("0.6.5") if not self.v1 else not self.since("0.9")

    @property
    def steps_in_flight(self) -> int:
        """Batches that hold blocks at once: two with asynchronous scheduling, the default since 0.28 (not read between 0.20.2 and it)."""
        return 2 if self.since("0.28") else 1


def release(version: str | None = None, capability: tuple[int, int] | None = None, v1: bool | None = None) -> Release:
    """The release called ``version`` (None: the newest read) on a GPU of this compute capability.

    Raises:
        GraphmemError: it is no version, or one that was not read.
    """
    try:
        found = Version(version or NEWEST)
    except InvalidVersion:
        raise GraphmemError(f"vllm-version {version!r}: no version number; write it as in pip: 0.11.2") from None
    if found < _OLDEST:
        raise GraphmemError(f"vllm-version {version}: older than {_OLDEST}, the first whose accounting graphmem knows")
    old_gpu = capability is not None and capability < (8, 0) and found < Version("0.11")
    engine = found >= Version("0.8") and not old_gpu if v1 is None else v1
    return Release(found, engine)


@dataclass(frozen=True)
class Scheduling:
    """How many sequences run at once, and how many tokens a step may have."""

    max_num_seqs: int
    max_num_batched_tokens: int


def scheduling(
    release: Release, usage: Usage, total: int, gpu: str, max_model_len: int, max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None, multimodal: bool = False, chunked: bool | None = None,
) -> Scheduling:  # fmt: skip
    """What a release takes for what the user left out.

    Args:
        total: bytes of the GPU, as torch sees it.
        gpu: its name; releases 0.7 to 0.10 tell large GPUs apart by it.
        chunked: whether V0 chunks prefills; None: as it decides itself, above 32,768 tokens since 0.5.5.
    """
    if not release.v1:
        return _v0(release, max_model_len, max_num_seqs, max_num_batched_tokens, multimodal, chunked)
    large = _is_large(release, total, gpu)
    seqs, tokens = (1024, 16384 if usage == "llm" else 8192) if large else (256, 8192 if usage == "llm" else 2048)
    if not release.since("0.8.5"):  # 1,024 on every GPU
        seqs = 1024
    if release.since("0.28") and total >= 160 * GIB:
        tokens = 16384
    sequences = max_num_seqs or seqs
    if max_num_batched_tokens is None:
        max_num_batched_tokens = min(tokens, sequences * max_model_len) if release.since("0.11.2") else tokens
    if max_num_seqs is None and release.since("0.11.2"):
        sequences = min(sequences, max_num_batched_tokens)
    return Scheduling(sequences, max_num_batched_tokens)


def _is_large(release: Release, total: int, gpu: str) -> bool:
    name = gpu.lower()
    if not release.since("0.7.3"):
        return False
    if not release.since("0.8.5"):
        return "h100" in name or "h200" in name
    return total >= 70 * GIB and ("a100" not in name or not release.since("0.9"))


def _v0(
    release: Release, max_model_len: int, seqs: int | None, tokens: int | None, multimodal: bool, chunked: bool | None
) -> Scheduling:
    if tokens is None:
        alone = release.since("0.5.5") and max_model_len > 32768 and not multimodal
        chunks = alone if chunked is None else chunked
        small = 2048 if release.since("0.6.6") else 512
        tokens = small if chunks else max(max_model_len, 2048)
        if multimodal and release.since("0.6.6"):
            tokens = max(tokens, 5120)
    return Scheduling(seqs or 256, tokens)
