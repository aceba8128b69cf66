"""Which engine spreads a run over GPUs, and what it takes: PyTorch's own, DeepSpeed's ZeRO, or Megatron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from graphmem.errors import GraphmemError, nearest
from graphmem.parallel.layout import DIMENSIONS, Parallel, factored, parallel_of
from graphmem.parallel.megatron.settings import Megatron
from graphmem.parallel.zero import Zero
from graphmem.training.run import Job
from graphmem.training.settings import Training

if TYPE_CHECKING:
    from graphmem.parallel.megatron.run import MegatronRun
    from graphmem.parallel.run import ParallelRun
    from graphmem.parallel.zero_run import ZeroRun

ENGINES = ("torch", "deepspeed", "megatron")
Layout = Parallel | Zero | Megatron


@dataclass(frozen=True)
class Asked:
    """What a user asks for. ``sizes``: of `DIMENSIONS` and ``ep``; ``settings``: of whatever engine it is; None in both: not given."""

    engine: str | None
    gpus: int | None
    zero: int | None
    sizes: Mapping[str, int | None]
    settings: Mapping[str, Any]


def layout_of(asked: Asked) -> Layout | None:
    """The layout; None: one GPU.

    Raises:
        GraphmemError: engines that exclude each other, settings of another engine, sizes that do not fit; names the numbers.
    """
    engine = asked.engine or ("deepspeed" if asked.zero is not None else "torch")
    if engine not in ENGINES:
        raise GraphmemError(f"engine {engine!r}: {nearest(engine, ENGINES)}")
    if asked.zero is not None and engine != "deepspeed":
        raise GraphmemError(
            f"zero {asked.zero} and engine {engine!r} exclude each other: ZeRO is DeepSpeed's; PyTorch's is --fsdp"
        )
    if engine == "torch":
        return parallel_of(asked.gpus, asked.sizes, asked.settings)
    sizes = {name: size for name, size in asked.sizes.items() if size is not None}
    settings = {name: value for name, value in asked.settings.items() if value is not None}
    return _zero(asked, sizes, settings) if engine == "deepspeed" else _megatron(asked.gpus, sizes, settings)


def _zero(asked: Asked, sizes: dict[str, int], settings: dict[str, Any]) -> Zero:
    others = [name for name in sizes if name != "dp"]
    if others:
        raise GraphmemError(
            f"zero and {others[0]} exclude each other here: ZeRO partitions over data-parallel ranks; leave {others[0]} out, or use --engine megatron"
        )
    if asked.gpus is None and not sizes.get("dp"):
        raise GraphmemError("zero: over how many GPUs? add --gpus")
    ranks = factored(asked.gpus, {"dp": 0, **sizes})["dp"] if asked.gpus is not None else sizes["dp"]
    _known("zero", Zero, settings)
    return Zero(2 if asked.zero is None else asked.zero, ranks, **settings)


def _megatron(gpus: int | None, sizes: dict[str, int], settings: dict[str, Any]) -> Megatron:
    if "fsdp" in sizes:
        raise GraphmemError("fsdp and engine 'megatron' exclude each other: its distributed optimizer shards over --dp")
    # Experts lie within the ranks of a stage, and are no factor of their own.
    found = factored(gpus, sizes if gpus is None or "dp" in sizes else {"dp": 0, **sizes})
    _known("engine megatron", Megatron, settings)
    return Megatron(**{name: found[name] for name in (*DIMENSIONS, "ep") if name in found}, **settings)


def _known(engine: str, kind: Any, settings: dict[str, Any]) -> None:
    names = [entry.name for entry in fields(kind) if entry.name not in (*DIMENSIONS, "ep", "stage", "ranks")]
    for name in settings:
        if name not in names:
            known = ", ".join(one.replace("_", "-") for one in names)
            raise GraphmemError(f"{name.replace('_', '-')} is no setting of {engine}; it takes {known}")


def spread_over(job: Job, layout: Layout) -> ParallelRun | ZeroRun | MegatronRun:
    """The run of a job by its layout's engine.

    Raises:
        GraphmemError: the model or the settings cannot be spread so; says where and why.
    """
    if isinstance(layout, Zero):
        from graphmem.parallel.zero_run import partitioned

        return partitioned(job, layout)
    if isinstance(layout, Megatron):
        from graphmem.parallel.megatron.run import megatron_run

        return megatron_run(
            job.target,
            _as_megatron(job.training, layout),
            job.device,
            job.choices.access,
            job.choices.batch_size,
            job.choices.seq_len,
        )
    from graphmem.parallel.run import on_ranks

    return on_ranks(job, layout)


def _as_megatron(training: Training, settings: Megatron) -> Megatron:
    """Settings of training in Megatron's words.

    Raises:
        GraphmemError: it has none for them.
    """
    if training.recipe not in (None, "mixed-fp32-grads", "mixed", "mixed-fp16"):
        raise GraphmemError(f"recipe {training.recipe!r}: Megatron trains with mixed-fp32-grads (bf16) or mixed-fp16")
    if training.adapter is not None or training.load_in is not None or training.compile or training.offload:
        raise GraphmemError(
            "adapters, quantized weights, compile and offload are not modelled for engine 'megatron'; leave them out"
        )
    if training.accumulation > 1:
        raise GraphmemError("accumulation: Megatron's micro-batches of a step are --microbatches")
    if training.loss_head != "full" or training.clip_norm is not None:
        raise GraphmemError(
            "loss and clip-norm: Megatron has its own loss over a split vocabulary, and clips in place; leave them out for engine 'megatron'"
        )
    if training.optimizer not in (None, "AdamW", "Adam"):
        raise GraphmemError(f"optimizer {training.optimizer}: engine 'megatron' is about Adam; leave it out")
    ways: dict[str | None, dict[str, Any]] = {
        None: {}, "layers": {"recompute_granularity": "full", "recompute_method": "uniform"}, "selective": {"recompute_granularity": "selective"},
    }  # fmt: skip
    if training.checkpointing not in ways:
        raise GraphmemError(
            f"checkpointing {training.checkpointing!r}: Megatron recomputes layers (full) or attention (selective)"
        )
    own = settings.recompute_granularity is None
    return replace(settings, fp16=training.recipe == "mixed-fp16", **(ways[training.checkpointing] if own else {}))
