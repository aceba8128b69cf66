"""What would make a run fit: changes, the cheapest first, each traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from graphmem.errors import GraphmemError
from graphmem.training.run import Job, TrainingRun, trained
from graphmem.training.settings import Training


@dataclass(frozen=True)
class Change:
    """A change of a job. ``cost``: what it takes for it."""

    key: str
    what: str
    cost: str
    apply: Callable[[Job], Job]


@dataclass(frozen=True)
class Tried:
    """A run with changes. ``saving``: bytes reserved less than without any."""

    what: str
    cost: str
    run: TrainingRun
    saving: int


def _training(**changes: Any) -> Callable[[Job], Job]:
    return lambda job: replace(job, training=replace(job.training, **changes))


def _candidates(job: Job) -> Iterator[Change]:
    """In the order of what they cost; those in force already are left out."""
    training, model_id = job.training, isinstance(job.target, str)
    if "expandable_segments" not in job.base.alloc_conf:
        conf = ",".join(part for part in (job.base.alloc_conf, "expandable_segments:True") if part)
        yield Change(
            "expandable",
            "--alloc-conf expandable_segments:True",
            "nothing",
            lambda job: replace(job, base=replace(job.base, alloc_conf=conf)),
        )
    if (
        training.optimizer in (None, "AdamW")
        and training.adapter is None
        and not (training.precision and training.precision.fp32_states)
    ):
        yield Change("fused", '--optimizer "AdamW(fused=True)"', "nothing", _training(optimizer="AdamW(fused=True)"))
    if training.loss_head == "full":
        yield Change("loss", "--loss fused", "nothing (needs Liger's kernels)", _training(loss_head="fused"))
    if job.base.attention == "eager" and model_id:
        yield Change(
            "attention",
            "--attention sdpa",
            "nothing",
            lambda job: replace(job, base=replace(job.base, attention="sdpa")),
        )
    if training.checkpointing is None:
        yield Change(
            "checkpointing", "--checkpointing layers", "about a third more compute", _training(checkpointing="layers")
        )
    if model_id and (job.choices.batch_size or 1) > 1 and not job.choices.packed and not training.optimizer_in_backward:
        yield from _smaller_batches(job)
    if training.optimizer is None and training.adapter is None and training.precision is None:
        yield Change(
            "optimizer",
            "--optimizer bitsandbytes.AdamW8bit",
            "8-bit optimizer states",
            _training(optimizer="bitsandbytes.AdamW8bit"),
        )
    if training.recipe in ("fp32", "amp-bf16", "amp-fp16", "mixed", "mixed-fp16", "mixed-fp32-grads"):
        yield Change("precision", "--recipe bf16", "no fp32 weights", _training(recipe="bf16", flat_buffers=False))
    if (
        training.recipe in ("bf16", "fp16", "fp32", "amp-bf16", "mixed")
        and training.optimizer is None
        and training.adapter is None
    ):
        yield Change(
            "optimizer",
            "--recipe bf16-adam8bit",
            "8-bit optimizer states",
            _training(recipe="bf16-adam8bit", flat_buffers=False),
        )
    if not training.offload:
        yield Change("offload", "--offload", "activations over PCIe, twice a step", _training(offload=True))
    if training.adapter is None:
        from graphmem.training.adapters import Adapter

        lora = Adapter("lora", rank=16, target_modules=("all-linear",))
        plain = {
            "optimizer": None,
            "flat_buffers": False,
            "recipe": "bf16",
            "adapter": lora,
            "optimizer_in_backward": False,
        }
        yield Change(
            "lora",
            "--recipe bf16 --adapter lora --rank 16 --target-modules all-linear",
            "trains adapters only",
            _training(**plain),
        )
        yield Change(
            "lora", "--recipe bf16 --adapter lora --rank 16 --target-modules all-linear --load-in nf4", "trains adapters only, on 4-bit weights",
            _training(**plain, load_in="nf4"),
        )  # fmt: skip
    elif training.load_in is None:
        yield Change(
            "load", "--load-in nf4", "4-bit weights", _training(load_in="nf4", recipe="bf16", flat_buffers=False)
        )


def _smaller_batches(job: Job) -> Iterator[Change]:
    """The same batch in micro-batches: half as large, a quarter, …; the first that fits is the last that is tried."""
    batch = job.choices.batch_size or 1
    for times in (2**power for power in range(1, batch.bit_length())):
        if batch % times:
            break
        size = batch // times

        def smaller(job: Job, size: int = size, times: int = times) -> Job:
            training: Training = replace(job.training, accumulation=job.training.accumulation * times)
            return replace(job, training=training, choices=replace(job.choices, batch_size=size))

        yield Change(
            "batch",
            f"--batch-size {size} --accumulation {job.training.accumulation * times}",
            "smaller products",
            smaller,
        )


def changes(run: TrainingRun) -> list[Tried]:
    """Each change by itself, then, unless one of them is enough, the cheapest ones together that are.

    What the model does not offer is left out.
    """
    tried: list[tuple[Change, Tried]] = []
    for change in _candidates(run.job):
        if change.key == "batch" and any(one.key == "batch" and other.run.fits for one, other in tried):
            continue  # a larger micro-batch does already
        found = _tried([change], run)
        if found is not None and found.saving > 0:
            tried.append((change, found))
    rows = [found for _, found in tried]
    if any(found.run.fits for found in rows):
        return rows
    together = _together([change for change, _ in tried], run)
    return rows if together is None else [*rows, together]


def _together(found: list[Change], run: TrainingRun) -> Tried | None:
    """Changes in their order until it fits, less those that turn out not to be needed; a later one replaces an earlier of its kind."""
    taken: list[Change] = []
    for change in found:
        taken = [*(one for one in taken if one.key != change.key and not _replaces(change, one)), change]
        tried = _tried(taken, run) if len(taken) > 1 else None
        if tried is not None and tried.run.fits:
            for one in list(taken):
                fewer = [other for other in taken if other is not one]
                without = _tried(fewer, run) if fewer else None
                if without is not None and without.run.fits:
                    taken, tried = fewer, without
            return tried
    return None


def _replaces(later: Change, earlier: Change) -> bool:
    """Adapters make the choice of the optimizer and of the precision their own."""
    return (later.key == "lora" and earlier.key in ("fused", "optimizer", "precision")) or (
        later.key == "optimizer" and earlier.key == "fused"
    )


def _tried(found: list[Change], run: TrainingRun) -> Tried | None:
    job = run.job
    try:
        for change in found:
            job = change.apply(job)
        changed = trained(job)
    except GraphmemError:
        return None
    costs = dict.fromkeys(change.cost for change in found if not change.cost.startswith("nothing") or len(found) == 1)
    return Tried(
        " ".join(change.what for change in found),
        ", ".join(costs) or "nothing",
        changed,
        run.reserved - changed.reserved,
    )
