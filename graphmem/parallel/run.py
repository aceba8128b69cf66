"""A training run on many GPUs: the fullest rank of every pipeline stage, each traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from graphmem.errors import GraphmemError
from graphmem.hardware.nccl import Nccl, nccl_of
from graphmem.parallel.communication import Sent, communication
from graphmem.parallel.layout import Parallel
from graphmem.parallel.rank import Rank
from graphmem.report import Report
from graphmem.tracing.trace import Trace
from graphmem.training.run import Job, TrainingRun, trained


@dataclass(frozen=True, repr=False)
class RankRun:
    """One rank's run, which stands for ``like`` ranks of the same stage and place."""

    number: int
    like: int
    run: TrainingRun
    #: Process group → its name for people, and how many ranks it has.
    groups: Mapping[str, tuple[str, int]]

    @cached_property
    def communication(self) -> list[Sent]:
        """What the rank sends in a step."""
        return communication(self.run.trace, self.groups)


@dataclass(frozen=True, repr=False)
class ParallelRun:
    """A run spread over ranks. Bytes are ints, of the fullest rank."""

    parallel: Parallel
    ranks: tuple[RankRun, ...]

    @property
    def fullest(self) -> RankRun:
        """The rank that needs the most."""
        return max(self.ranks, key=lambda rank: rank.run.reserved)

    @property
    def trace(self) -> Trace:
        return self.fullest.run.trace

    @property
    def peak(self) -> int:
        """The most bytes of tensors allocated at once."""
        return max(rank.run.peak for rank in self.ranks)

    @property
    def reserved(self) -> int:
        """The most bytes PyTorch reserves at once."""
        return self.fullest.run.reserved

    @property
    def nccl(self) -> Nccl:
        """What NCCL holds beside PyTorch's allocator."""
        return nccl_of(self.parallel.gpus)

    @property
    def margin(self) -> int | None:
        """Bytes left on the GPU at the reserved peak, CUDA context and NCCL's buffers counted; below zero, how much is missing."""
        margin = self.fullest.run.margin
        return None if margin is None else margin - (self.nccl.usual if self.trace.device.type == "cuda" else 0)

    @property
    def fits(self) -> bool | None:
        """Whether every rank fits; None where no GPU was named."""
        margin = self.margin
        return None if margin is None else bool(self.fullest.run.fits) and margin >= 0

    def report(self, by: str | None = None, top: int | None = None, compare_rules: bool = False) -> Report:
        """What ``graphmem train`` prints."""
        from graphmem.parallel.report import report

        return report(self, by, top, compare_rules)

    def __repr__(self) -> str:
        return repr(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __getitem__(self, key: str) -> Any:
        return self.report()[key]


def on_ranks(job: Job, parallel: Parallel) -> ParallelRun:
    """Trace the ranks of a job.

    Raises:
        GraphmemError: the model or the settings cannot be spread so; says where and why.
    """
    _check(job, parallel)
    ranks = []
    for number in range(0, parallel.gpus, parallel.gpus // parallel.pp):
        rank = Rank(parallel, number)
        run = trained(replace(job, world=rank))
        ranks.append(RankRun(number, parallel.gpus // parallel.pp, run, rank.groups))
    return ParallelRun(parallel, tuple(ranks))


def _check(job: Job, parallel: Parallel) -> None:
    training = job.training
    recipe = training.precision
    if parallel.gpus == 1:
        raise GraphmemError("one GPU: leave the parallel options out")
    for name, given in (
        ("compile", training.compile),
        ("optimizer in backward", training.optimizer_in_backward),
    ):
        if given:
            raise GraphmemError(f"{name} on several GPUs is not modelled: drop it")
    if parallel.shards > 1 and recipe is not None and recipe.master:
        raise GraphmemError(
            f"recipe {recipe.key!r} keeps its own fp32 masters; FSDP2 shards fp32 weights and computes in 16 bit: "
            "--recipe fp32 --param-dtype bfloat16 --reduce-dtype float32"
        )
    cut = next((name for name in ("tp", "pp", "ep") if getattr(parallel, name) > 1), None)
    if training.adapter is not None and cut is not None:
        raise GraphmemError(
            f"{cut} {getattr(parallel, cut)} and adapters together are not modelled: plans name the model's own modules; use --fsdp or --dp"
        )
    if parallel.tp > 1 and parallel.dp > 1 and parallel.shards == 1:
        raise GraphmemError(
            f"dp {parallel.dp} × tp {parallel.tp}: PyTorch's DDP takes no DTensors; use --fsdp {parallel.dp} in place of --dp"
        )
    if parallel.tp > 1 and parallel.shards == 1 and training.clip_norm is not None:
        raise GraphmemError(
            f"clip-norm with tp {parallel.tp} alone: PyTorch's clip_grad_norm_ takes DTensors or plain tensors, and here are both; add --fsdp, or drop it"
        )
    if parallel.sharding.cpu_offload and (
        parallel.shards == 1 or training.accumulation > 1 or job.device.type != "cuda"
    ):
        raise GraphmemError(
            "cpu-offload is FSDP2's, from a GPU, without accumulated gradients: add --fsdp, drop --accumulation"
        )
    if parallel.shards > 1 and recipe is not None and recipe.fp8 is not None:
        raise GraphmemError(f"recipe {recipe.key!r} under FSDP2 is not modelled; use --param-dtype bfloat16")
