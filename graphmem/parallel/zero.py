"""ZeRO (Rajbhandari et al. 2020) as DeepSpeed runs it: what a GPU and its host hold, by stage and moment, and what is sent.

Formulas, each with its source; activations are those of the model's own code on one GPU, traced. DeepSpeed is 0.19.6 (deepspeedai/DeepSpeed@edaa722).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from graphmem.errors import GraphmemError, nearest

Offload = Literal["cpu", "nvme"]
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Zero:
    """DeepSpeed's settings, by the names of its ``zero_optimization`` section; sizes there are in elements."""

    stage: int
    ranks: int
    offload_optimizer: Offload | None = None
    offload_param: Offload | None = None
    reduce_bucket_size: int = 500_000_000
    overlap_comm: bool | None = None
    #: One all-reduce a bucket (DeepSpeed's default since 2023), or a reduce to each rank, which sends half as much.
    use_multi_rank_bucket_allreduce: bool = True
    stage3_prefetch_bucket_size: int = 50_000_000
    stage3_param_persistence_threshold: int = 100_000
    stage3_max_live_parameters: int = 1_000_000_000
    stage3_max_reuse_distance: int = 1_000_000_000
    sub_group_size: int = 1_000_000_000
    #: ZeRO++: ranks of a node that keep a second copy of parameters among them.
    zero_hpz_partition_size: int = 1
    zero_quantized_weights: bool = False
    zero_quantized_gradients: bool = False
    gpus_per_node: int = 8
    accumulation: int = 1

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise GraphmemError(f"zero {self.stage}: ZeRO has stages 0, 1, 2 and 3")
        if self.ranks < 2:
            raise GraphmemError(f"zero {self.stage} over {self.ranks} GPU: partitions need at least two; add --gpus")
        for name in ("offload_optimizer", "offload_param"):
            value = getattr(self, name)
            if value is not None and value not in get_args(Offload):
                raise GraphmemError(f"{name.replace('_', '-')} {value!r}: {nearest(value, get_args(Offload))}")
        if self.offload_param and self.stage != 3:
            raise GraphmemError(
                f"offload-param is about ZeRO-3, which partitions parameters; this is stage {self.stage}"
            )
        if self.offload_optimizer and self.stage == 0:
            raise GraphmemError("offload-optimizer needs ZeRO-1 or more; this is stage 0")
        if self.zero_hpz_partition_size > 1 and (self.stage != 3 or self.ranks % self.zero_hpz_partition_size):
            raise GraphmemError(
                f"zero-hpz-partition-size {self.zero_hpz_partition_size}: is about ZeRO-3, and must divide the {self.ranks} ranks"
            )
        if (self.zero_quantized_weights or self.zero_quantized_gradients) and self.stage != 3:
            raise GraphmemError(f"quantized communication (ZeRO++) is about ZeRO-3; this is stage {self.stage}")

    @property
    def overlaps(self) -> bool:
        """``overlap_comm``; by default in stage 3 only (runtime/zero/config.py, overlap_comm_valid)."""
        return self.stage == 3 if self.overlap_comm is None else self.overlap_comm

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.gpus_per_node)


@dataclass(frozen=True)
class Model:
    """What is trained: counts of elements, and bytes an element. ``states``: what the optimizer keeps beside its master copy."""

    parameters: int
    #: Of the largest module's own parameters, and of those small enough that stage 3 keeps them gathered.
    largest: int
    small: int
    param_bytes: int = 2
    gradient_bytes: int = 2
    master_bytes: int = 4
    states: float = 8.0
    #: Bytes of weights that are not trained: under adapters.
    frozen: int = 0

    @property
    def k(self) -> float:
        """The paper's K: bytes of optimizer states a parameter."""
        return self.master_bytes + self.states


def paper(model: Model, stage: int, ranks: int) -> float:
    """Model states of a GPU in bytes, by the paper (§3.1, §5; figure 1): (2 + 2 + K) Ψ, and what a stage divides by the ranks."""
    psi, n = model.parameters, ranks
    weights, gradients, k = model.param_bytes, model.gradient_bytes, model.k
    return {
        0: (weights + gradients + k) * psi,
        1: (weights + gradients) * psi + k * psi / n,
        2: weights * psi + (gradients + k) * psi / n,
        3: (weights + gradients + k) * psi / n,
    }[stage]


def documented(model: Model, zero: Zero) -> dict[str, float]:
    """What DeepSpeed's own estimates say of model states on a GPU; they disagree about stage 2 in one and the same commit.

    ``documentation``: docs/code-docs/source/memory.rst. ``estimator``: the functions ``estimate_zero{2,3}_model_states_mem_needs``.
    """
    psi, n = model.parameters, zero.ranks
    if zero.stage == 2:
        if zero.offload_optimizer:
            return {"documentation": 2.0 * psi, "estimator": 2.0 * psi}
        return {"documentation": 4 * psi + 16 * psi / n, "estimator": 2 * psi + 18 * psi / n}
    if zero.stage == 3:
        largest = 4.0 * model.largest
        rest = 0.0 if zero.offload_param else 2 * psi / n if zero.offload_optimizer else 18 * psi / n
        return {"documentation": largest + rest, "estimator": largest + rest}
    return {}


def states(model: Model, zero: Zero) -> Iterator[tuple[str, str, int]]:
    """(kind, what, bytes) that a GPU holds from the end of one step to the backward of the next (runtime/zero/stage_1_and_2.py, stage3.py)."""
    part, stage = _partition(model, zero), zero.stage
    if model.frozen and not (stage == 3 and zero.offload_param):
        yield "parameter", "frozen parameters", model.frozen if stage < 3 else math.ceil(model.frozen / zero.ranks)
    if stage == 0:
        yield "parameter", "parameters", model.param_bytes * model.parameters
        yield "optimizer", "optimizer states", round(model.k * model.parameters)
        return
    if stage < 3:
        yield "parameter", "parameters, flat", model.param_bytes * model.parameters
    elif not zero.offload_param:
        yield "parameter", "the rank's part of parameters", model.param_bytes * part
    if not zero.offload_optimizer:
        yield "optimizer", "the rank's part of optimizer states", round(model.k * part)
    if stage == 3:
        if not zero.offload_optimizer:
            yield "gradient", "the rank's part of gradients", model.gradient_bytes * part
        yield "communication", "reduce bucket", model.gradient_bytes * zero.reduce_bucket_size
        yield "parameter", "gathered parameters", model.param_bytes * live(model, zero)
        if zero.zero_hpz_partition_size > 1:
            yield (
                "parameter",
                "second copy of parameters within the node",
                model.param_bytes * model.parameters // zero.zero_hpz_partition_size,
            )


def live(model: Model, zero: Zero) -> int:
    """Elements of stage 3's gathered parameters: small ones always; the module at work, what is fetched ahead of it (never beyond
    ``stage3_max_live_parameters``), and the end of forward that backward uses again within ``stage3_max_reuse_distance``
    (partitioned_param_coordinator.py, fetch_sub_module and __params_to_release)."""
    ahead = min(zero.stage3_prefetch_bucket_size, max(zero.stage3_max_live_parameters - model.largest, 0))
    again = zero.stage3_max_reuse_distance // 2
    return min(model.small + max(model.largest + ahead, again), model.parameters)


def gradient_share(zero: Zero) -> float:
    """How much of the gradients a GPU keeps as backward makes them. Stage 1 without accumulation reduces them as they come where
    communication overlaps; else it keeps them whole until the step."""
    if zero.stage == 0 or (zero.stage == 1 and not (zero.overlaps and zero.accumulation == 1)):
        return 1.0
    if zero.stage == 3 or zero.offload_optimizer:
        return 0.0  # stage 3's part has a place of its own already; offloaded gradients go to the host
    return (2 if zero.accumulation > 1 else 1) / zero.ranks


def buckets(model: Model, zero: Zero) -> int:
    """Bytes of the buckets that stages 1 and 2 make in each backward: one of the full size, two where communication overlaps, and a flat copy."""
    if zero.stage not in (1, 2):
        return 0
    each = model.gradient_bytes * zero.reduce_bucket_size
    return each * (2 if zero.overlaps else 1) + min(each, model.gradient_bytes * model.parameters)


def in_step(model: Model, zero: Zero) -> int:
    """Bytes beside `states` while the optimizer steps: 16-bit gradients flattened and an fp32 copy of them, of a rank's part."""
    if zero.offload_optimizer:
        return 0
    if zero.stage == 0:
        return (model.gradient_bytes + (4 if model.master_bytes else 0)) * model.parameters
    part = _partition(model, zero)
    if zero.stage == 3:
        return (
            (model.gradient_bytes + 4) * min(part, zero.sub_group_size)
            if model.param_bytes < 4
            else 4 * min(part, zero.sub_group_size)
        )
    return (2 * model.gradient_bytes + (4 if model.param_bytes < 4 else 0)) * part


def host(model: Model, zero: Zero) -> Iterator[tuple[str, int]]:
    """(what, bytes) in host memory of a rank. Pinned buffers are rounded up to a power of two by PyTorch (CachingHostAllocator.h)."""
    part = _partition(model, zero)
    if zero.offload_optimizer:
        disk = zero.offload_optimizer == "nvme"
        if disk:
            yield "buffers for states on NVMe (pinned)", 4 * 4 * min(part, zero.sub_group_size)
        else:
            yield "fp32 parameters", 4 * part
            yield "optimizer states", round(model.states * part)
        yield "fp32 gradients (pinned)", 4 * part
        yield "16-bit gradients or parameters (pinned)", model.param_bytes * part
        if zero.accumulation > 1 and zero.stage < 3:
            yield "accumulated gradients (pinned)", model.gradient_bytes * part
    if zero.offload_param == "cpu":
        yield "16-bit parameters (pinned)", model.param_bytes * part
    elif zero.offload_param == "nvme":
        yield "buffers for parameters on NVMe (pinned)", 5 * 100_000_000 * model.param_bytes


@dataclass(frozen=True)
class Volume:
    """Elements a rank sends in a step, as multiples of Ψ, and which collectives send them."""

    paper: float
    run: float
    collectives: str
    #: How often parameters are gathered beside that, which those that are frozen are too.
    gathers: float = 0.0


def volume(zero: Zero) -> Volume:
    """By the paper (§7: an all-reduce is a reduce-scatter and an all-gather, Ψ each), and by what DeepSpeed calls."""
    steps = zero.accumulation
    if zero.stage == 0:
        return Volume(2.0, 2.0, "all-reduce of gradients")
    if zero.stage in (1, 2):
        each = 2.0 if zero.use_multi_rank_bucket_allreduce else 1.0
        often = steps if zero.stage == 2 else 1
        how = "all-reduce" if zero.use_multi_rank_bucket_allreduce else "reduce"
        return Volume(
            2.0,
            often * each + 1.0,
            f"{how} of each bucket{f', {often} times' if often > 1 else ''}; all-gather of parameters",
        )
    gathers = (0.5 if zero.zero_quantized_weights else 1.0) + (
        0.0 if zero.zero_hpz_partition_size > 1 else 0.5 if zero.zero_quantized_weights else 1.0
    )
    scatter = 0.25 if zero.zero_quantized_gradients else 1.0
    said = "all-gather in forward and in backward; reduce-scatter of gradients"
    if zero.zero_hpz_partition_size > 1:
        said += "; between nodes: backward gathers within its node"
    return Volume(3.0, steps * (gathers + scatter), said, steps * gathers)


def _partition(model: Model, zero: Zero) -> int:
    """Elements of a rank's part; stages 1 and 2 pad to a multiple of two a rank (nccl_start_alignment_factor)."""
    if zero.stage == 0:
        return model.parameters
    return (
        math.ceil(model.parameters / (2 * zero.ranks)) * 2
        if zero.stage < 3
        else math.ceil(model.parameters / zero.ranks)
    )
