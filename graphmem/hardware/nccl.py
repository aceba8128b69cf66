"""What NCCL holds on a GPU, outside of PyTorch's allocator, once a process has communicated.

Calibrated: channels, peers and protocols decide, by release and by the links between GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Bytes by the ranks of the largest group: ai-dynamo/aiconfigurator@095f58a, systems/*.yaml, misc.nccl_mem (NCCL 2.23 to 2.29).
_USUAL = ((1, 0), (2, 342_000_000), (4, 392_000_000))
#: The most of a first all-reduce that was published: NVIDIA/Megatron-LM#964 (A100).
_MOST = ((1, 0), (2, 544_000_000), (3, 688_000_000))


@dataclass(frozen=True, slots=True)
class Nccl:
    """Bytes a process: the usual, and the most that was measured. All-to-alls between many peers take more."""

    usual: int
    most: int
    source: str = "aiconfigurator's nccl_mem; Megatron-LM#964"


def nccl_of(ranks: int) -> Nccl:
    """What is held by a process whose largest group has so many ranks."""

    def at(table: tuple[tuple[int, int], ...]) -> int:
        return max(nbytes for least, nbytes in table if ranks >= least)

    return Nccl(at(_USUAL), at(_MOST))
