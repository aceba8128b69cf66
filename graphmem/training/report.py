"""A training run as a Report: does it fit, the stages, what is alive at the peak, the figures people confuse, what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphmem.errors import GraphmemError, nearest
from graphmem.published.compare import Found, comparison
from graphmem.report import Column, Figure, Report, Row, Section, Table
from graphmem.timeline import reserved_tables
from graphmem.timeline.events import Block, rounded
from graphmem.timeline.summary import TOP, breakdown, peak_by_kind, peak_by_layer
from graphmem.training.flops import flops
from graphmem.training.stages import STAGES, StagePeak, kept_for_backward, offloaded, stages
from graphmem.units import format_bytes

if TYPE_CHECKING:
    from graphmem.training.run import TrainingRun

#: Recipes that ``--by precision`` traces beside each other.
PRECISIONS = ("fp32", "amp-bf16", "mixed", "bf16")
BY = ("module", "layer", "op", "line", "precision")


def report(run: TrainingRun, by: str | None = None, top: int | None = None, compare_rules: bool = False) -> Report:
    """What ``graphmem train`` prints.

    Raises:
        GraphmemError: ``by`` is none of `BY`.
    """
    if by is not None and by not in BY:
        raise GraphmemError(f"by {by!r}: {nearest(by, BY)}")
    trace = run.trace
    found = stages(trace)
    tables = [_stages(found), peak_by_kind(trace), peak_by_layer(trace, top or TOP)]
    if trace.device.type == "cuda":
        tables.append(reserved_tables.levels(trace, run.served))
    if run.fits is False:
        tables.append(_changes(run))
    if compare_rules:
        tables.append(comparison(_found(run)))
    if by == "precision":
        tables.append(_by_precision(run))
    elif by is not None:
        tables.append(breakdown(trace, by, top or TOP))  # type: ignore[arg-type]
    origin = f"one training step traced on the meta device for {trace.device.name}; no weights, no GPU"
    section = Section("", tuple(_figures(run)), tuple(tables))
    return Report("train", trace.target, origin, (section,), tuple(_notes(run)), tuple(_warnings(run)))


def _figures(run: TrainingRun) -> Iterator[Figure]:
    trace = run.trace
    if run.fits is not None:
        assert trace.device.memory is not None
        said = "yes" if run.fits else "no"
        place = f"on {trace.device.name}" if run.named else f"in {format_bytes(trace.device.memory)}"
        yield Figure(
            "fits", f"Fits {place}", said, "text", "calibrated",
            f"PyTorch's allocator on {format_bytes(trace.device.memory)}, as torch sees it, less the median CUDA context",
        )  # fmt: skip
        yield Figure(
            "margin", "Left on the GPU" if run.fits else "Over by", abs(run.margin or 0), "bytes", "calibrated"
        )
    yield Figure("parameters", "Parameters", run.parameters, "count", "built")
    if run.trained != run.parameters:
        yield Figure(
            "trained", "Trained", run.trained, "count", "built", f"{run.trained / max(run.parameters, 1):.4%} of all"
        )
    yield Figure("model", "Model", trace.start, "bytes", "traced", "parameters, buffers and inputs")
    yield Figure(
        "peak",
        "Peak allocated",
        trace.peak,
        "bytes",
        run.optimizer_basis,
        f"every block rounded up to {trace.device.rounding} B",
    )
    if trace.device.type == "cuda":
        yield from (
            figure
            for figure in reserved_tables.figures(trace, run.served)
            if figure.key in ("reserved", "driver", "driver_loaded")
        )
    op = trace.peak_op
    if op is not None:
        where = ", ".join(part for part in (op.phase, op.module, op.name, op.line) if part)
        yield Figure("peak_where", "Peak at", where, "text", "traced")
    yield Figure(
        "saved",
        "Kept for backward",
        kept_for_backward(trace),
        "bytes",
        "traced",
        "activations that are there when forward is over",
    )
    yield Figure("states", "Optimizer states", _of_kind(run, "optimizer"), "bytes", run.optimizer_basis)
    if run.paged:
        yield Figure(
            "paged",
            "Paged optimizer states",
            run.paged,
            "bytes",
            "formula",
            "unified memory, beside PyTorch's allocator; in host memory where the GPU is full",
        )
    if run.job.training.offload:
        yield Figure("offloaded", "Activations in host memory", offloaded(trace), "bytes", "traced")
    yield from _compute(run)


def _compute(run: TrainingRun) -> Iterator[Figure]:
    counted = flops(run.trace)
    again = counted.get("recompute", 0)
    once = sum(counted.values()) - again
    if not once:
        return
    yield Figure(
        "flops",
        "Compute of a step",
        sum(counted.values()),
        "count",
        "traced",
        "floating-point operations of products and attention",
    )
    if again:
        forward = counted.get("forward", 0) + counted.get("loss", 0)
        yield Figure(
            "recompute", "Recomputed", round(again / once, 4), "share", "traced",
            f"{again:,} operations on top of {once:,}; forward takes {forward:,}",
        )  # fmt: skip


def _of_kind(run: TrainingRun, kind: str) -> int:
    """The most bytes of a kind at the end of a stage."""
    return max((peak.kinds.get(kind, 0) for peak in stages(run.trace)), default=0)  # type: ignore[call-overload]


_KINDS = (
    ("parameter", "Weights"),
    ("buffer", "Buffers"), ("gradient", "Gradients"), ("optimizer", "Optimizer"), ("activation", "Activations"), ("temporary", "Temporary"),
    ("workspace", "Workspaces"),
)  # fmt: skip
#: Of several GPUs only.
_GATHERED = ("communication", "Communication")


def _stages(found: list[StagePeak]) -> Table:
    kinds_here = [*_KINDS, *(one for one in (_GATHERED,) if any(one[0] in peak.kinds for peak in found))]
    columns = (
        Column("stage", "Stage"), Column("first", "First step", "bytes"), Column("later", "Later steps", "bytes"),
        *(Column(key, title, "bytes", detail=True) for key, title in kinds_here),
    )  # fmt: skip
    last = max((peak.step for peak in found), default=0)
    by_step = {(peak.step, peak.stage): peak for peak in found}
    rows: list[Row] = []
    for stage in STAGES:
        first, later = by_step.get((0, stage)), by_step.get((last, stage)) if last else None
        shown = later or first
        if shown is None:
            continue
        kinds = [shown.kinds.get(key, 0) for key, _ in kinds_here]  # type: ignore[call-overload]
        rows.append((stage, first.peak if first else None, later.peak if later else None, *kinds))
    notes = (
        "the peak of each stage, everything counted; by kind in the last step traced. Later steps begin with optimizer states in place",
    )
    return Table("stages", "Stages", columns, tuple(rows), "traced", None, notes)


def _by_precision(run: TrainingRun) -> Table:
    """The stages under each recipe, as accelerate's table has them by dtype."""
    columns = (
        Column("recipe", "Recipe"),
        *(Column(stage.replace(" ", "_"), stage.capitalize(), "bytes") for stage in STAGES),
        Column("peak", "Peak", "bytes"),
    )
    rows: list[Row] = []
    for key in PRECISIONS:
        other = run if run.job.training.recipe == key else run.again(recipe=key)
        found = stages(other.trace)
        most = [
            max((peak.peak for peak in found if peak.stage == stage and (stage != "model" or not peak.step)), default=0)
            for stage in STAGES
        ]
        rows.append((key, *most, other.peak))
    return Table("precisions", "Stages by precision", columns, tuple(rows), "traced")


def _changes(run: TrainingRun) -> Table:
    columns = (
        Column("change", "Change"), Column("cost", "It costs"), Column("reserved", "Reserved", "bytes"), Column("saving", "Saves", "bytes"),
        Column("fits", "Fits"),
    )  # fmt: skip
    tried = run.changes
    rows = tuple((one.what, one.cost, one.run.reserved, one.saving, "yes" if one.run.fits else "no") for one in tried)
    notes = (
        ()
        if any(one.run.fits for one in tried)
        else ("none of these, nor all together, makes it fit: take a larger GPU or several",)
    )
    return Table("changes", "What would make it fit, the cheapest first", columns, rows, "simulated", None, notes)


def _found(run: TrainingRun) -> Found:
    trace, sizes = run.trace, run.sizes
    dtypes: dict[str, int] = {}
    weights = 0
    for event in trace.events:
        if event.op is not None:
            break
        block = trace.blocks[event.block]
        if block.kind == "parameter":
            dtypes[block.dtype] = dtypes.get(block.dtype, 0) + block.nbytes
            weights += _size(run, block)
    states = max(
        (sum(peak.kinds.get(kind, 0) for kind in ("parameter", "gradient", "optimizer")) for peak in stages(trace) if peak.stage == "optimizer step"),
        default=0,
    )  # fmt: skip
    return Found(
        run.parameters, weights, states, kept_for_backward(trace), trace.peak, max(dtypes, key=dtypes.__getitem__, default="float32"),
        sizes.get("layers"), sizes.get("hidden"), sizes.get("heads"), sizes.get("tokens"), sizes.get("batch"),
    )  # fmt: skip


def _size(run: TrainingRun, block: Block) -> int:
    return rounded(block.nbytes, run.trace.device.rounding)


def _notes(run: TrainingRun) -> Iterator[str]:
    trace, training = run.trace, run.job.training
    yield from (f"{key}: {value}" for key, value in trace.settings.items())
    yield from run.said
    if run.optimizer_basis == "formula":
        yield "the optimizer's states and temporaries follow its documented layout: its kernels run on a GPU only"
    if trace.device.context is not None:
        low, median, high = (format_bytes(size) for size in trace.device.context)
        yield f"assumed: nothing else runs on the GPU, and its CUDA context takes {median} ({low} to {high} were measured)"
    if training.steps == 1:
        yield "one step, the first of a run: later ones begin with the optimizer's state in place"
    if training.load_in is not None:
        yield "embeddings, head and norms keep their dtype; peft.prepare_model_for_kbit_training would make them fp32"
    if run.fits and run.unlimited.peak_reserved > run.reserved:
        yield (
            f"fits because PyTorch gives cached memory back where it runs short, which takes time; without a limit it would reserve "
            f"{format_bytes(run.unlimited.peak_reserved)}"
        )
    if not run.named and trace.device.type == "cuda":
        yield f"assumed: kernels of an {trace.device.name}; --gpu names another"
    yield from (
        f"assumed: {what}; first at {where}"
        for what, where in trace.assumptions.items()
        if not what.startswith("the loss is taken as")
    )


def _warnings(run: TrainingRun) -> Iterator[str]:
    yield from run.warnings
    yield from (what for what in run.trace.assumptions if what.startswith("the loss is taken as"))
    context, margin = run.trace.device.context, run.margin
    if run.fits and context is not None and margin is not None and margin < context[2] - context[1]:
        yield (
            f"it fits by {format_bytes(margin)}, less than CUDA contexts vary ({format_bytes(context[0])} to {format_bytes(context[2])} were "
            f"measured): with a large one it will not"
        )
    limited = run.limited
    if run.fits is False and limited is not None and (died := limited.out_of_memory) is not None:
        yield f"PyTorch would say: {reserved_tables.message(run.trace, died, limited.conf)}"
    elif run.fits is False:
        yield f"the model itself does not fit: {format_bytes(run.trace.start)} of parameters, buffers and inputs"
