"""A run under Megatron-LM as a Report: every stage, and what the fullest one holds at its fullest moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphmem.parallel.megatron import activations
from graphmem.parallel.megatron.stages import in_flight
from graphmem.report import Column, Figure, Report, Row, Section, Table, sum_row
from graphmem.units import format_bytes

if TYPE_CHECKING:
    from graphmem.parallel.megatron.run import MegatronRun
    from graphmem.parallel.megatron.states import Line


def report(run: MegatronRun) -> Report:
    """What ``graphmem train --engine megatron`` prints."""
    fullest = run.fullest
    tables = (
        _stages(run), _lines(f"Stage {fullest.stage} at its fullest: {fullest.fullest}", "peak", fullest.moments[fullest.fullest]), _layer(run),
    )  # fmt: skip
    origin = f"Megatron-Core with Transformer Engine on {run.device.name}, by formula; {run.origin}"
    return Report("train", run.target, origin, (Section("", tuple(_figures(run)), tables),), tuple(_notes(run)))


def _figures(run: MegatronRun) -> Iterator[Figure]:
    given = run.settings
    sizes = " × ".join(
        f"{name} {getattr(given, name)}" for name in ("pp", "dp", "cp", "tp") if getattr(given, name) > 1
    )
    experts = f", ep {given.ep}" if given.ep > 1 else ""
    yield Figure("gpus", "GPUs", f"{given.world:,}" + (f": {sizes}{experts}" if sizes else ""), "text", "assumed")
    if run.fits is not None and run.margin is not None:
        yield Figure(
            "fits",
            f"Fits on {run.device.name}",
            "yes" if run.fits else "no",
            "text",
            "calibrated",
            "allocated, the median CUDA context and NCCL's buffers; fragments are not counted",
        )
        yield Figure("margin", "Left on the GPU" if run.fits else "Over by", abs(run.margin), "bytes", "calibrated")
    yield Figure(
        "parameters", "Parameters of a rank", run.parameters, "count", "formula", f"of stage {run.fullest.stage}"
    )
    yield Figure("steady", "Allocated between steps", run.fullest.allocated, "bytes", "formula")
    yield Figure(
        "peak", "Peak allocated", run.peak, "bytes", "formula", "core/pipeline_parallel/schedules.py; docs/accuracy.md"
    )
    yield Figure("peak_where", "Peak at", f"stage {run.fullest.stage}, {run.fullest.fullest}", "text", "formula")
    yield Figure(
        "nccl",
        "NCCL's buffers",
        run.nccl.usual,
        "bytes",
        "calibrated",
        f"up to {format_bytes(run.nccl.most)} were measured ({run.nccl.source})",
    )


def _stages(run: MegatronRun) -> Table:
    columns = (
        Column("stage", "Stage"), Column("flight", "In flight"), Column("steady", "Between steps", "bytes"), Column("peak", "Peak allocated", "bytes"),
        Column("where", "At"),
    )  # fmt: skip
    rows: list[Row] = []
    for stage in run.stages:
        flight = in_flight(run.settings.pp, run.settings.chunks, stage.stage, run.settings.microbatches)
        rows.append((str(stage.stage), " + ".join(map(str, flight)), stage.allocated, stage.peak, stage.fullest))
    notes = ("in flight: micro-batches whose activations wait for backward, of each chunk",)
    return Table("stages", "Pipeline stages", columns, tuple(rows), "formula", None, notes)


def _lines(title: str, key: str, lines: tuple[Line, ...]) -> Table:
    columns = (
        Column("what", "What"),
        Column("kind", "Kind"),
        Column("bytes", "Bytes", "bytes"),
        Column("share", "Share", "share"),
    )
    found = [line for line in lines if line.nbytes]
    total = sum(line.nbytes for line in found)
    rows: list[Row] = [(line.what, line.kind, line.nbytes, line.nbytes / total) for line in found]
    return Table(key, title, columns, tuple(rows), "formula", sum_row(columns, rows))


def _layer(run: MegatronRun) -> Table:
    """What one layer saves of one micro-batch."""
    experts = run.model.has_experts(run.model.layers - 1)
    columns = (
        Column("what", "Saved by a layer" + (" with experts" if experts else "")),
        Column("bytes", "Bytes", "bytes"),
    )
    rows: list[Row] = list(activations.layer(run.model, run.settings, experts))
    notes = ("of one micro-batch, before recomputation",)
    return Table("layer", "Activations of a layer", columns, tuple(rows), "formula", sum_row(columns, rows), notes)


def _notes(run: MegatronRun) -> Iterator[str]:
    given = run.settings
    yield f"micro-batches of {given.micro_batch_size} × {given.seq_length:,} tokens, {given.microbatches} a step"
    yield f"{'fp16' if given.fp16 else 'bf16'}, Adam with fp32 master weights" + (
        f", distributed over {given.dp * given.cp} ranks" if given.use_distributed_optimizer else ""
    )
    yield f"attention: {given.attention_backend}; dropout {given.hidden_dropout:g}; gradients accumulated as they are made: {'yes' if given.gradient_accumulation_fusion else 'no'}"
    if run.model.experts is not None:
        yield "assumed: routing is balanced: every expert gets as many tokens"
