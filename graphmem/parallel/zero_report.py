"""A run under ZeRO as a Report: what a GPU holds at each moment, every stage beside it, the host, and what is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphmem.parallel.zero import documented, host, paper, volume
from graphmem.report import Column, Figure, Report, Row, Section, Table, sum_row
from graphmem.units import format_bytes

if TYPE_CHECKING:
    from graphmem.parallel.zero_run import ZeroRun

_SOURCE = "DeepSpeed 0.19.6, runtime/zero/stage_1_and_2.py and stage3.py"


def report(run: ZeroRun) -> Report:
    """What ``graphmem train --zero`` prints."""
    tables = [_moments(run), _stages(run), _communication(run)]
    if any(nbytes for _, nbytes in host(run.model, run.zero)):
        tables.append(_host(run))
    place = run.device.name
    origin = f"one training step traced on one {place}, its states partitioned as DeepSpeed does; no weights, no GPU"
    return Report(
        "train",
        run.trace.target,
        origin,
        (Section("", tuple(_figures(run)), tuple(tables)),),
        tuple(_notes(run)),
        run.alone.warnings,
    )


def _figures(run: ZeroRun) -> Iterator[Figure]:
    zero = run.zero
    yield Figure("gpus", "GPUs", f"{zero.ranks:,}: ZeRO-{zero.stage}", "text", "assumed")
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
    yield Figure("parameters", "Parameters", run.alone.parameters, "count", "built")
    yield Figure(
        "k",
        "Optimizer states, bytes a parameter (K)",
        round(run.model.k, 2),
        "text" if run.model.k % 1 else "count",
        run.alone.optimizer_basis,
    )
    yield Figure(
        "states",
        "Model states by the paper",
        round(paper(run.model, zero.stage, zero.ranks)),
        "bytes",
        "formula",
        "ZeRO (Rajbhandari et al. 2020), §3.1 and figure 1",
    )
    for said, nbytes in documented(run.model, zero).items():
        where = (
            "docs/code-docs/source/memory.rst" if said == "documentation" else "estimate_zero*_model_states_mem_needs"
        )
        yield Figure(said, f"Model states by DeepSpeed's {said}", round(nbytes), "bytes", "formula", where)
    yield Figure("peak", "Peak allocated", run.peak, "bytes", "formula", f"{_SOURCE}; activations traced")
    yield Figure("peak_where", "Peak at", run.fullest.name, "text", "formula")
    if run.device.type == "cuda":
        yield Figure(
            "nccl",
            "NCCL's buffers",
            run.nccl.usual,
            "bytes",
            "calibrated",
            f"up to {format_bytes(run.nccl.most)} were measured ({run.nccl.source})",
        )


def _moments(run: ZeroRun) -> Table:
    columns = (
        Column("moment", "Moment"),
        Column("kind", "Kind"),
        Column("what", "What"),
        Column("bytes", "Bytes", "bytes"),
    )
    rows: list[Row] = [
        (moment.name, kind, what, nbytes) for moment in run.moments for kind, what, nbytes in moment.lines
    ]
    notes = ("; ".join(f"{moment.name} {format_bytes(moment.total)}" for moment in run.moments),)
    return Table("moments", "A GPU at each moment", columns, tuple(rows), "formula", None, notes)


def _stages(run: ZeroRun) -> Table:
    columns = [
        Column("stage", "Stage"), Column("paper", "States (paper)", "bytes"), Column("documentation", "Documentation", "bytes", detail=True),
        Column("estimator", "Estimator", "bytes", detail=True), Column("peak", "Peak allocated", "bytes"), Column("where", "At"),
    ]  # fmt: skip
    if run.fits is not None:
        columns.append(Column("fits", "Fits"))
    rows: list[Row] = []
    for other in run.stages():
        said = documented(other.model, other.zero)
        row: list[object] = [
            f"ZeRO-{other.zero.stage}", round(paper(other.model, other.zero.stage, other.zero.ranks)),
            *(round(said[key]) if key in said else None for key in ("documentation", "estimator")), other.peak, other.fullest.name,
        ]  # fmt: skip
        if run.fits is not None:
            row.append("yes" if other.fits else "no")
        rows.append(tuple(row))  # type: ignore[arg-type]
    notes = (
        "paper: (2 + 2 + K) Ψ, of which stage 1 divides K, stage 2 gradients too, stage 3 all; peak: what the code allocates, with activations",
        "DeepSpeed's documentation says 4 Ψ + 16 Ψ/n of stage 2, its own function 2 Ψ + 18 Ψ/n; what it holds in between is neither",
    )
    return Table("zero", "Stages of ZeRO", tuple(columns), tuple(rows), "formula", None, notes)


def _communication(run: ZeroRun) -> Table:
    columns = (
        Column("stage", "Stage"), Column("paper", "By the paper", "bytes"), Column("sent", "Sent by a rank", "bytes"), Column("what", "Collectives"),
    )  # fmt: skip
    rows: list[Row] = []
    for other in run.stages():
        found = volume(other.zero)
        psi, frozen = other.model.parameters * other.model.param_bytes, other.model.frozen
        rows.append(
            (
                f"ZeRO-{other.zero.stage}",
                round(found.paper * psi),
                round(found.run * psi + found.gathers * frozen),
                f"{found.run:g} Ψ ({found.paper:g} Ψ): {found.collectives}",
            )
        )
    notes = ("of one step, an element in the weights' dtype; an all-reduce sends twice what it reduces (paper, §7)",)
    return Table("communication", "Communication", columns, tuple(rows), "formula", None, notes)


def _host(run: ZeroRun) -> Table:
    columns = (
        Column("what", "In host memory"),
        Column("rank", "A rank", "bytes"),
        Column("node", f"A node of {min(run.zero.gpus_per_node, run.zero.ranks)}", "bytes"),
    )
    each = min(run.zero.gpus_per_node, run.zero.ranks)
    rows: list[Row] = [(what, nbytes, nbytes * each) for what, nbytes in host(run.model, run.zero)]
    notes = ("PyTorch rounds a pinned buffer up to a power of two: up to twice as much",)
    return Table("host", "Host memory", columns, tuple(rows), "formula", sum_row(columns, rows), notes)


def _notes(run: ZeroRun) -> Iterator[str]:
    zero = run.zero
    yield from (f"{key}: {value}" for key, value in run.trace.settings.items())
    yield from run.alone.said
    yield f"buckets of {zero.reduce_bucket_size:,} elements, allocated whole; overlap_comm {'on' if zero.overlaps else 'off'}"
    yield "fused Adam: no temporaries beside its flat gradients"
