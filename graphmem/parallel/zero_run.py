"""A training run under ZeRO: the model's own step, traced on one GPU, with its states partitioned by stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from graphmem.errors import GraphmemError
from graphmem.hardware.nccl import Nccl, nccl_of
from graphmem.parallel.zero import STAGES, Model, Zero, buckets, gradient_share, in_step, states
from graphmem.report import Report
from graphmem.timeline.events import rounded
from graphmem.tracing.device import Device
from graphmem.tracing.trace import Trace
from graphmem.training.run import Job, TrainingRun, trained

#: Recipes that DeepSpeed trains with: 16-bit weights with fp32 masters, or fp32 throughout.
RECIPES = ("mixed", "mixed-fp16", "fp32")
_STATES = ("parameter", "gradient", "optimizer")


@dataclass(frozen=True)
class Moment:
    """What a GPU holds at the fullest point of a part of the step. Bytes."""

    name: str
    lines: tuple[tuple[str, str, int], ...]

    @property
    def total(self) -> int:
        return sum(nbytes for _, _, nbytes in self.lines)


@dataclass(frozen=True, repr=False)
class ZeroRun:
    """A run under one stage of ZeRO. Bytes are ints, of one GPU. ``alone``: the same step on one GPU."""

    zero: Zero
    model: Model
    alone: TrainingRun

    @property
    def trace(self) -> Trace:
        return self.alone.trace

    @property
    def device(self) -> Device:
        return self.alone.trace.device

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """Forward, backward and optimizer step."""
        held = tuple(states(self.model, self.zero))
        share = gradient_share(self.zero)
        rest = _fullest(self.trace, share)
        bucket = buckets(self.model, self.zero)
        found = []
        for name in ("forward", "backward"):
            beside, gradients = rest.get(name, (0, 0))
            lines = [
                *held,
                ("activation", "activations, buffers, workspaces", beside),
                ("gradient", "gradients", gradients),
            ]
            if name == "backward" and bucket:
                lines.append(("communication", "reduce buckets and a flat copy", bucket))
            found.append(Moment(name, tuple(line for line in lines if line[2])))
        step = ("gradient", "gradients in fp32, and flattened", in_step(self.model, self.zero))
        return (*found, Moment("optimizer step", tuple(line for line in (*held, step) if line[2])))

    @property
    def fullest(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def peak(self) -> int:
        """The most bytes of tensors allocated at once."""
        return self.fullest.total

    @property
    def nccl(self) -> Nccl:
        return nccl_of(self.zero.ranks)

    @property
    def margin(self) -> int | None:
        """Bytes left on the GPU, its CUDA context and NCCL's buffers counted; below zero, how much is missing. Fragments are not counted."""
        if self.device.memory is None:
            return None
        return self.device.memory - self.device.context_size - self.nccl.usual - self.peak

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where no GPU was named."""
        return None if self.margin is None else self.margin >= 0

    def stages(self) -> Iterator[ZeroRun]:
        """The same under every stage that its settings allow."""
        for stage in STAGES:
            try:
                yield self if stage == self.zero.stage else replace(self, zero=replace(self.zero, stage=stage))
            except GraphmemError:  # settings that are about this stage only
                continue

    def report(self, by: str | None = None, top: int | None = None, compare_rules: bool = False) -> Report:
        """What ``graphmem train --zero`` prints."""
        from graphmem.parallel.zero_report import report

        return report(self)

    def __repr__(self) -> str:
        return repr(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __getitem__(self, key: str) -> Any:
        return self.report()[key]


def partitioned(job: Job, zero: Zero) -> ZeroRun:
    """Trace a job on one GPU and partition it.

    Raises:
        GraphmemError: a recipe that DeepSpeed does not train with.
    """
    if job.training.load_in is not None:
        raise GraphmemError(
            f"zero and load-in {job.training.load_in}: DeepSpeed with quantized weights is not modelled; --fsdp runs it"
        )
    if job.training.compile:
        raise GraphmemError("compile on several GPUs is not modelled: drop it")
    training = job.training if job.training.recipe is not None else replace(job.training, recipe="mixed")
    recipe = training.precision
    assert recipe is not None
    if recipe.key not in RECIPES:
        raise GraphmemError(f"recipe {recipe.key!r}: DeepSpeed trains with {', '.join(RECIPES)}")
    alone = trained(replace(job, training=training, device=replace(job.device, memory=None)))
    alone = replace(alone, job=replace(alone.job, device=job.device), trace=replace(alone.trace, device=job.device))
    psi = alone.trained
    kept = max((nbytes for nbytes in _optimizer_bytes(alone.trace)), default=0)
    small, largest = _modules(alone.trace)
    weights = sum(block.nbytes for block in alone.trace.blocks if block.op is None and block.kind == "parameter")
    # Adapters are traced as peft makes them, in fp32 without masters; DeepSpeed casts them like all the model.
    traced, master = (4, 0) if job.training.adapter is not None and recipe.master else (recipe.weights, recipe.master)
    frozen = max(weights - psi * traced, 0)
    model = Model(
        psi,
        largest,
        small,
        recipe.weights,
        recipe.gradients,
        recipe.master,
        max(kept / psi - master, 0.0) if psi else 0.0,
        frozen,
    )
    return ZeroRun(replace(zero, accumulation=training.accumulation), model, alone)


def _fullest(trace: Trace, share: float) -> dict[str, tuple[int, int]]:
    """Of forward and backward in the last step: (bytes beside states, bytes of gradients kept) where both together are the most."""
    last = max((op.step for op in trace.ops), default=0)
    rest = gradients = 0
    found: dict[str, tuple[int, int]] = {}
    for event in trace.events:
        block = trace.blocks[event.block]
        change = rounded(block.nbytes, trace.device.rounding) * (1 if event.alloc else -1)
        if block.kind == "gradient":
            gradients += change
        elif block.kind not in _STATES:
            rest += change
        op = trace.ops[event.op] if event.op is not None else None
        if op is None or op.step != last or op.phase == "optimizer":
            continue
        part = "backward" if op.phase in ("backward", "recompute") else "forward"
        now = rest, round(gradients * share)
        found[part] = max(found.get(part, (0, 0)), now, key=sum)
    return found


def _optimizer_bytes(trace: Trace) -> Iterator[int]:
    """Bytes of optimizer states after each event."""
    now = 0
    for event in trace.events:
        block = trace.blocks[event.block]
        if block.kind == "optimizer":
            now += block.nbytes if event.alloc else -block.nbytes
            yield now


def _modules(trace: Trace) -> tuple[int, int]:
    """Elements of parameters that stage 3 keeps gathered, being small, and of the largest module's own."""
    threshold = Zero(3, 2).stage3_param_persistence_threshold
    small, modules = 0, dict[str, int]()
    for name, index in trace.placeholders.items():
        block = trace.values[index].block
        if block is None or trace.blocks[block].kind != "parameter":
            continue
        count = 1
        for size in trace.values[index].shape:
            count *= size
        small += count if count <= threshold else 0
        module = name.rpartition(".")[0]
        modules[module] = modules.get(module, 0) + count
    return small, max(modules.values(), default=0)
