"""How ranks are laid out: the sizes of every kind of parallelism, checked against each other, and the engine's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from graphmem.errors import GraphmemError, nearest

Schedule = Literal[
    "GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV"
]
#: Schedules of one stage a rank.
_SINGLE = ("GPipe", "1F1B")
#: Dimensions of the mesh, outermost first: neighbouring ranks share a tensor-parallel group, as in torchtitan and Megatron.
DIMENSIONS = ("pp", "dp", "fsdp", "cp", "tp")


@dataclass(frozen=True)
class Sharding:
    """Settings of `torch.distributed.fsdp.fully_shard`, by its own names."""

    #: True: parameters are dropped after forward and gathered again for backward; False: kept; a number: resharded to as many ranks.
    reshard_after_forward: bool | int = True
    #: torch's names of dtypes in ``MixedPrecisionPolicy``; None: as the parameters are.
    param_dtype: str | None = None
    reduce_dtype: str | None = None
    #: ``CPUOffloadPolicy``: shards, gradients and optimizer states lie in host memory.
    cpu_offload: bool = False


@dataclass(frozen=True)
class Buckets:
    """Settings of `torch.nn.parallel.DistributedDataParallel`, by its own names."""

    bucket_cap_mb: float = 25
    gradient_as_bucket_view: bool = False
    static_graph: bool = False


@dataclass(frozen=True)
class Pipeline:
    """Settings of a pipeline: its schedule (`torch.distributed.pipelining.schedules`), and stages a rank."""

    schedule: Schedule = "1F1B"
    #: Of a step; None: as many as stages.
    microbatches: int | None = None
    #: Stages a rank, of a schedule that interleaves them; None: two.
    chunks: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise GraphmemError(f"schedule {self.schedule!r}: {nearest(self.schedule, get_args(Schedule))}")
        if self.chunks is not None and self.schedule in _SINGLE and self.chunks > 1:
            raise GraphmemError(
                f"chunks {self.chunks}: schedule {self.schedule} has one stage a rank; use Interleaved1F1B or InterleavedZeroBubble"
            )
        if self.is_v and self.chunks not in (None, 2):
            raise GraphmemError(f"chunks {self.chunks}: schedule {self.schedule} has two stages a rank")

    @property
    def chunks_a_rank(self) -> int:
        return 1 if self.schedule in _SINGLE else self.chunks or 2

    @property
    def is_v(self) -> bool:
        """Whether the second stage of a rank is the mirror of its first."""
        return self.schedule in ("ZBVZeroBubble", "DualPipeV")


@dataclass(frozen=True)
class Parallel:
    """Ranks of each kind; their product is the number of GPUs. Expert parallelism lies within the data-parallel ranks."""

    #: Replicas: DDP, or, with ``fsdp``, the outer dimension of HSDP.
    dp: int = 1
    #: Ranks that parameters, gradients and states are sharded over by FSDP2.
    fsdp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    #: Activations between tensor-parallel layers are sharded over the sequence.
    sequence_parallel: bool = False
    #: Logits stay split over the vocabulary, and the loss is computed of the parts.
    loss_parallel: bool = False
    sharding: Sharding = field(default_factory=Sharding)
    buckets: Buckets = field(default_factory=Buckets)
    pipeline: Pipeline = field(default_factory=Pipeline)

    def __post_init__(self) -> None:
        for name in (*DIMENSIONS, "ep"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise GraphmemError(f"{name} {size!r}: a number of ranks, 1 or more")
        if self.sequence_parallel and self.tp == 1:
            raise GraphmemError("sequence-parallel: is about activations between tensor-parallel layers; add --tp")
        if self.loss_parallel and self.tp == 1:
            raise GraphmemError("loss-parallel: is about a head that is split over tensor-parallel ranks; add --tp")
        if (
            self.pipeline.schedule == "1F1B"
            and self.pipeline.microbatches is not None
            and self.pipeline.microbatches < self.pp
        ):
            raise GraphmemError(
                f"microbatches {self.pipeline.microbatches}: PyTorch's 1F1B takes at least one a stage, and pp is {self.pp}; use --schedule GPipe, or more"
            )
        within = self.shards * self.tp
        if self.ep > 1 and (within % self.ep or self.ep % self.tp):
            raise GraphmemError(
                f"ep {self.ep}: experts are spread over the {within} ranks of fsdp {self.fsdp} × cp {self.cp} × tp {self.tp}; it must divide them, and be a multiple of tp"
            )
        resharded = self.sharding.reshard_after_forward
        if not isinstance(resharded, bool) and (resharded < 1 or self.shards % resharded):
            raise GraphmemError(
                f"reshard-after-forward {resharded} does not divide the {self.shards} ranks of a shard group"
            )

    @property
    def gpus(self) -> int:
        return math.prod(getattr(self, name) for name in DIMENSIONS)

    @property
    def shards(self) -> int:
        """Ranks that FSDP2 shards over: those of context parallelism hold the same parameters, and shard them too (torchtitan)."""
        return self.fsdp * self.cp if self.fsdp > 1 or self.cp > 1 else 1

    @property
    def expert_shards(self) -> int:
        """Ranks that hold the same experts, and shard them."""
        return self.shards * self.tp // self.ep

    @property
    def words(self) -> str:
        """``8 GPUs: fsdp 4 × tp 2``."""
        sizes = [f"{name} {getattr(self, name)}" for name in DIMENSIONS if getattr(self, name) > 1]
        return (
            f"{self.gpus:,} GPUs"
            + (f": {' × '.join(sizes)}" if sizes else "")
            + (f", ep {self.ep}" if self.ep > 1 else "")
        )


#: Written for a size: as many ranks as the others leave over.
REST = 0


def parallel_of(gpus: int | None, sizes: Mapping[str, int | None], settings: Mapping[str, Any]) -> Parallel | None:
    """The layout of ``gpus`` ranks; None where none is asked for.

    Args:
        sizes: of the dimensions and ``ep``; `REST` takes what the others leave over.
        settings: fields of `Parallel`, `Sharding`, `Buckets` and `Pipeline`; None: not given.

    Raises:
        GraphmemError: sizes that do not multiply to the number of GPUs, or settings there are none of; names the numbers.
    """
    chosen = {name: size for name, size in sizes.items() if size is not None}
    given = {name: value for name, value in settings.items() if value is not None}
    if gpus is None and not chosen:
        if given:
            raise GraphmemError(
                f"{next(iter(given)).replace('_', '-')}: is about several GPUs; add --gpus with --fsdp, --dp, --tp or --pp"
            )
        return None
    parallel = Parallel(**factored(gpus, chosen), **_placed(given))
    _refuse_settings_of_nothing(parallel, given)
    return parallel


def _refuse_settings_of_nothing(parallel: Parallel, given: Mapping[str, Any]) -> None:
    """A setting that nothing would follow is a mistake, not a wish to ignore."""
    about: tuple[tuple[Any, bool, str], ...] = (
        (Sharding, parallel.shards > 1, "FSDP2's shards; add --fsdp"),
        (Buckets, parallel.dp > 1 and parallel.shards == 1, "DDP's buckets; add --dp, without --fsdp"),
        (Pipeline, parallel.pp > 1, "a pipeline's; add --pp"),
    )
    for kind, there, of in about:
        for name in (entry.name for entry in fields(kind)):
            if name in given and not there:
                raise GraphmemError(f"{name.replace('_', '-')}: is about {of}")


def factored(gpus: int | None, sizes: dict[str, int]) -> dict[str, Any]:
    """Sizes with numbers, whose product is the number of GPUs."""
    rest = [name for name, size in sizes.items() if size == REST]
    if len(rest) > 1:
        raise GraphmemError(f"{' and '.join(rest)} both without a number: give one of them a size")
    factors = {name: size for name, size in sizes.items() if name in DIMENSIONS and size != REST}
    known = math.prod(factors.values())
    said = " × ".join(f"{name} {size}" for name, size in factors.items())
    if gpus is None:
        if rest:
            raise GraphmemError(f"{rest[0]} without a number takes the GPUs that are left over; add --gpus")
        return sizes
    if known < 1 or gpus % known:
        raise GraphmemError(f"gpus {gpus}: {said} = {known} does not divide it")
    if rest:
        return {**sizes, rest[0]: gpus // known}
    if gpus != known:
        left = gpus // known
        raise GraphmemError(
            f"gpus {gpus}: "
            + (
                f"{said} makes {known}; say what the other factor of {left} is"
                if said
                else "say how they share the work"
            )
            + f": --fsdp {left}, --dp {left}, --tp {left}, --pp {left}"
        )
    return sizes


def _placed(given: dict[str, Any]) -> dict[str, Any]:
    """Settings by the part they are fields of."""
    parts: dict[str, Any] = {"sharding": Sharding, "buckets": Buckets, "pipeline": Pipeline}
    known = {entry.name: part for part, kind in parts.items() for entry in fields(kind)}
    own = {entry.name for entry in fields(Parallel)} - {*DIMENSIONS, "ep", *parts}
    for name in given:
        if name not in known and name not in own:
            raise GraphmemError(f"parallel setting {name!r}: {nearest(name, sorted([*known, *own]))}")
    placed = {part: kind(**{k: v for k, v in given.items() if known.get(k) == part}) for part, kind in parts.items()}
    return {**{k: v for k, v in given.items() if k in own}, **placed}
