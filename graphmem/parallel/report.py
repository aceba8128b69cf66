"""A run on many GPUs as a Report: that of the fullest rank, with a table of the ranks and one of what they send."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from graphmem.dtypes import from_torch
from graphmem.report import Column, Figure, Report, Row, Table, sum_row
from graphmem.units import format_bytes

if TYPE_CHECKING:
    from graphmem.parallel.run import ParallelRun, RankRun
    from graphmem.timeline.events import Value
    from graphmem.tracing.trace import Trace


def report(run: ParallelRun, by: str | None = None, top: int | None = None, compare_rules: bool = False) -> Report:
    """What ``graphmem train`` prints of several GPUs."""
    whole = run.fullest.run.report(by, top, compare_rules)
    (section,) = whole.sections
    host = _host(run)
    figures = (Figure("gpus", "GPUs", run.parallel.words, "text", "assumed"), *host, *_figures(run, section.figures))
    tables = (_ranks(run), _communication(run.fullest), *section.tables)
    origin = f"{whole.origin}; rank {run.fullest.number} of {run.parallel.gpus:,}, the fullest, in a world of ranks that send nothing"
    return replace(whole, origin=origin, sections=(replace(section, figures=figures, tables=tables),))


def _host(run: ParallelRun) -> Iterator[Figure]:
    """What FSDP2's CPUOffloadPolicy keeps in host memory: shards and their gradients as they are, and Adam's two moments of each."""
    if not run.parallel.sharding.cpu_offload:
        return
    trained = run.fullest.run
    shards = sum(math.prod(value.shape) * from_torch(value.dtype).nbytes(1) for value in _parameters(trained.trace))
    moments = (
        2 * shards
        if trained.job.training.optimizer in (None, "AdamW", "Adam") and trained.job.training.adapter is None
        else 0
    )
    what = "shards, gradients and Adam's moments" if moments else "shards and gradients, without the optimizer's states"
    yield Figure("host", "Host memory of a rank", 2 * shards + moments, "bytes", "formula", what + "; pinned")


def _parameters(trace: Trace) -> Iterator[Value]:
    """Shards, of which none is in a block: they lie in host memory."""
    yield from (trace.values[index] for index in trace.placeholders.values() if trace.values[index].block is None)


def _figures(run: ParallelRun, figures: tuple[Figure, ...]) -> Iterator[Figure]:
    """Those of one rank, with NCCL's buffers counted where it is about the whole GPU."""
    on_gpu = run.trace.device.type == "cuda"
    for figure in figures:
        if figure.key == "fits":
            yield replace(figure, value="yes" if run.fits else "no")
        elif figure.key == "margin":
            yield replace(figure, title="Left on the GPU" if run.fits else "Over by", value=abs(run.margin or 0))
        else:
            yield figure
        if figure.key == "driver" and on_gpu:
            usual, most = run.nccl.usual, run.nccl.most
            yield Figure(
                "nccl", "NCCL's buffers", usual, "bytes", "calibrated",
                f"outside PyTorch's allocator, on top of nvidia-smi above; up to {format_bytes(most)} were measured ({run.nccl.source})",
            )  # fmt: skip


def _ranks(run: ParallelRun) -> Table:
    on_gpu = run.trace.device.type == "cuda"
    columns = [
        Column("ranks", "Ranks"),
        Column("stage", "Stage", "count"),
        Column("model", "Model", "bytes"),
        Column("peak", "Peak allocated", "bytes"),
    ]
    if on_gpu:
        columns.append(Column("reserved", "Reserved", "bytes"))
    rows: list[Row] = []
    for stage, rank in enumerate(run.ranks):
        last = rank.number + rank.like - 1
        row: list[object] = [
            f"{rank.number}–{last}" if rank.like > 1 else str(rank.number),
            stage,
            rank.run.trace.start,
            rank.run.peak,
        ]
        rows.append((*row, rank.run.reserved) if on_gpu else tuple(row))  # type: ignore[arg-type]
    notes = ("traced is the first of each row; FSDP2 pads what its ranks do not divide, so that all hold as much",)
    return Table("ranks", "Ranks", tuple(columns), tuple(rows), "traced", None, notes)


def _communication(rank: RankRun) -> Table:
    columns = (
        Column("what", "Collective"), Column("group", "Between"), Column("phase", "In"), Column("calls", "Calls", "count"),
        Column("payload", "Tensors", "bytes"), Column("sent", "Sent by a rank", "bytes"),
    )  # fmt: skip
    found = sorted(rank.communication, key=lambda one: -one.sent)
    rows: list[Row] = [
        (one.what, f"{one.group} ({one.ranks})", one.phase, one.calls, one.payload, one.sent) for one in found
    ]
    notes = ("of one step; sent as ring algorithms do: (n − 1)/n of the tensors, of an all-reduce twice that",)
    return Table("communication", "Communication", columns, tuple(rows), "traced", sum_row(columns, rows), notes)
