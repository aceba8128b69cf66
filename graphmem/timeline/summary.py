"""A Trace as a Report: the totals, the peak and what is alive there, and breakdowns by op, module, layer or source line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from graphmem.errors import GraphmemError
from graphmem.report import Cell, Column, Figure, Report, Row, Section, Table, sum_row
from graphmem.timeline import reserved_tables
from graphmem.timeline.events import KINDS, Block, rounded
from graphmem.timeline.reserved import moved_in
from graphmem.units import format_bytes

if TYPE_CHECKING:
    from graphmem.tracing.trace import Trace

By = Literal["op", "module", "layer", "line"]
#: Rows of a breakdown unless the caller asks for more.
TOP = 15


def report(trace: Trace, by: By | None = None, top: int | None = None, events: bool = False) -> Report:
    """What ``graphmem trace`` prints; ``events`` adds the table of every allocation and release."""
    tables = [peak_by_kind(trace), peak_by_layer(trace, top or TOP), _phases(trace)]
    figures, warnings = list(_figures(trace)), []
    if trace.device.type == "cuda":
        found = trace.simulation
        figures[2:2] = reserved_tables.figures(trace, found)
        tables.append(reserved_tables.levels(trace, found))
        if len(trace.events) <= reserved_tables.MOST_EVENTS:
            tables.append(reserved_tables.settings(trace, found))
        if (died := found.out_of_memory) is not None:
            figures = [_unending(figure) for figure in figures]
            figures[:0] = reserved_tables.death(trace, died)
            tables = [
                replace(table, title=f"{table.title}, if memory had no end") if table.basis == "traced" else table
                for table in tables
            ]
            warnings.append(reserved_tables.message(trace, died, found.conf))
    if by is not None:
        tables.append(breakdown(trace, by, top or TOP))
    if events:
        tables.append(timeline(trace))
    notes = [f"{key}: {value}" for key, value in trace.settings.items()]
    if trace.device.memory is not None and trace.device.context is not None:
        low, median, high = (format_bytes(size) for size in trace.device.context)
        notes.append(
            f"assumed: nothing else runs on the GPU, and its CUDA context takes {median} ({low} to {high} were measured)"
        )
    if trace.device.memory is not None and trace.settings.get("step") == "train" and "steps" not in trace.settings:
        notes.append(
            "one step, the first of a run: later ones begin with the optimizer's state in place; --steps 2 shows one"
        )
    notes += [f"assumed: {what}; first at {where}" for what, where in trace.assumptions.items()]
    origin = f"traced on the meta device for {trace.device.name}; no weights, no GPU"
    section = Section("", tuple(figures), tuple(tables))
    return Report("trace", trace.target, origin, (section,), tuple(notes), tuple(warnings))


def _unending(figure: Figure) -> Figure:
    """A figure of the whole step, in a report of one that does not reach its end."""
    whole = figure.key in ("peak", "rise", "end", "peak_where", "saved")
    return replace(figure, title=f"{figure.title}, if memory had no end") if whole else figure


def _figures(trace: Trace) -> Iterable[Figure]:
    yield Figure("start", "Before the step", trace.start, "bytes", "traced", "parameters, buffers and inputs")
    yield Figure("peak", "Peak", trace.peak, "bytes", "traced", f"every block rounded up to {trace.device.rounding} B")
    yield Figure("rise", "Rise over the start", trace.peak - trace.start, "bytes", "traced")
    yield Figure("end", "After the step", trace.end, "bytes", "traced")
    op = trace.peak_op
    if op is not None:
        module = op.module or ("the optimizer" if op.phase == "optimizer" else trace.modules.get("", "the step"))
        where = f"{op.phase}, {module}, {op.name}" + (f", {op.line}" if op.line else "")
        yield Figure("peak_where", "Peak at", where, "text", "traced")
    yield Figure("ops", "Operations", len(trace.ops), "count", "traced")
    yield Figure(
        "saved",
        "Saved for backward",
        _saved_bytes(trace),
        "bytes",
        "traced",
        "activations autograd keeps, weights not counted",
    )


def _saved_bytes(trace: Trace) -> int:
    """Of the step that saves most."""
    kept: dict[int, set[int]] = {}
    for op in trace.ops:
        blocks = {block for value in op.saved if (block := trace.values[value].block) is not None}
        kept.setdefault(op.step, set()).update(blocks)

    def activations(blocks: set[int]) -> int:
        found = (trace.blocks[block] for block in blocks)
        return sum(_size(trace, block) for block in found if block.kind == "activation" and block.op is not None)

    return max((activations(blocks) for blocks in kept.values()), default=0)


def _size(trace: Trace, block: Block) -> int:
    return rounded(block.nbytes, trace.device.rounding)


_SUMS = (Column("bytes", "Bytes", "bytes"), Column("share", "Share", "share"))


def _summed(trace: Trace, blocks: Iterable[Block], key: Callable[[Block], str]) -> list[Row]:
    totals: dict[str, int] = {}
    for block in blocks:
        totals[key(block)] = totals.get(key(block), 0) + _size(trace, block)
    whole = sum(totals.values()) or 1
    return [(name, nbytes, nbytes / whole) for name, nbytes in sorted(totals.items(), key=lambda item: -item[1])]


def peak_by_kind(trace: Trace) -> Table:
    """The blocks alive at the peak, summed by what they are."""
    rows = _summed(trace, trace.alive_at_peak(), lambda block: block.kind)
    order = {kind: position for position, kind in enumerate(KINDS)}
    rows.sort(key=lambda row: order[row[0]])  # type: ignore[index]
    columns = (Column("kind", "Kind"), *_SUMS)
    return Table("peak_kinds", "Alive at the peak", columns, tuple(rows), "traced", sum_row(columns, rows))


def layer_of(module: str) -> str:
    """The layer a module path belongs to: up to its first number (``model.layers.3``), or its first two parts; ``(step)`` for none."""
    parts = module.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return module or "(model, loss, inputs)"


def peak_by_layer(trace: Trace, top: int) -> Table:
    """The same by the layer they belong to; the ``top`` largest."""
    rows = _summed(trace, trace.alive_at_peak(), lambda block: layer_of(block.module))
    columns = (Column("layer", "Layer"), *_SUMS)
    return Table("peak_layers", "Alive at the peak, by layer", columns, *_cut(columns, rows, top))


def _cut(columns: tuple[Column, ...], rows: list[Row], top: int) -> tuple[tuple[Row, ...], Literal["traced"], Row]:
    """The largest rows, the rest summed in one row, the basis, and the total of all."""
    total = sum_row(columns, rows)
    if len(rows) > top + 1:
        rest = sum_row(columns, rows[top:], f"({len(rows) - top} others)")
        rows = [*rows[:top], rest]
    return tuple(rows), "traced", total


def _phases(trace: Trace) -> Table:
    """The highest total while each phase ran, step by step."""
    highest: dict[tuple[int, str], int] = {}
    ops: dict[tuple[int, str], int] = {}
    total, position = trace.start, 0
    for index, op in enumerate(trace.ops):
        key = (op.step, op.phase)
        ops[key] = ops.get(key, 0) + 1
        highest[key] = max(highest.get(key, 0), total)
        while position < len(trace.events) and (
            trace.events[position].op is None or trace.events[position].op == index
        ):
            total = trace.totals[position]
            if trace.events[position].op is not None:
                highest[key] = max(highest[key], total)
            position += 1
    rows = [(step + 1, phase, highest.get((step, phase)), count) for (step, phase), count in ops.items()]
    columns = (
        Column("step", "Step", "text"), Column("phase", "Phase"), Column("peak", "Peak", "bytes"), Column("ops", "Operations", "count"),
    )  # fmt: skip
    return Table("phases", "Phases", columns, tuple((str(step), *rest) for step, *rest in rows), "traced")


def breakdown(trace: Trace, by: By, top: int) -> Table:
    """Operations grouped: how many, bytes they produced, bytes they saved for backward, bytes that were gone by the end of the step."""
    names = {"op": "Operation", "module": "Module", "layer": "Layer", "line": "Line"}
    if by not in names:
        raise GraphmemError(f"by {by!r}: use {', '.join(names)}")
    name = names[by]

    def key(index: int) -> str:
        op = trace.ops[index]
        return {
            "op": op.name,
            "module": op.module or "(model, loss, inputs)",
            "layer": layer_of(op.module),
            "line": op.line or "(torch)",
        }[by]

    groups: dict[str, list[int]] = {}
    for index in range(len(trace.ops)):
        groups.setdefault(key(index), [0, 0, 0, 0])[0] += 1
    saved = {trace.values[value].block for op in trace.ops for value in op.saved}
    for number, block in enumerate(trace.blocks):
        if block.op is None:
            continue
        group = groups[key(block.op)]
        size = _size(trace, block)
        group[1] += size
        group[2] += size if number in saved else 0
        group[3] += size if block.kind in ("temporary", "workspace") else 0
    rows: list[tuple[Cell, ...]] = [(label, *sums) for label, sums in groups.items()]
    rows.sort(key=lambda row: -int(row[2] or 0))
    columns = (
        Column(by, name), Column("count", "Count", "count"), Column("bytes", "Produced", "bytes"),
        Column("saved", "Saved", "bytes"), Column("temporary", "Temporary", "bytes"),
    )  # fmt: skip
    return Table(f"by_{by}", f"By {name.lower()}", columns, *_cut(columns, rows, top))


def timeline(trace: Trace) -> Table:
    """Every allocation and release in order, with the total after it."""
    rows: list[Row] = []
    reserved = _reserved_by_event(trace)
    for index, (event, total) in enumerate(zip(trace.events, trace.totals, strict=True)):
        block, op = trace.blocks[event.block], trace.ops[event.op] if event.op is not None else None
        sign = 1 if event.alloc else -1
        rows.append(
            (index, sign * _size(trace, block), total, reserved[index], block.kind, op.name if op else "", op.phase if op else "start", block.module,
             op.line if op else "", block.name, str(list(block.shape)), block.dtype)
        )  # fmt: skip
    columns = (
        Column("event", "Event", "text"), Column("bytes", "Bytes", "bytes"), Column("total", "Total", "bytes"), Column("reserved", "Reserved", "bytes"),
        Column("kind", "Kind"), Column("op", "Operation"), Column("phase", "Phase"), Column("module", "Module"), Column("line", "Line"), Column("name", "Name"),
        Column("shape", "Shape"), Column("dtype", "Dtype"),
    )  # fmt: skip
    return Table("timeline", "Timeline", columns, tuple(rows), "traced")


def _reserved_by_event(trace: Trace) -> list[int | None]:
    """Bytes reserved after each event; None on the CPU, and where the step has run out of memory by then."""
    if trace.device.type != "cuda":
        return [None] * len(trace.events)
    started = sum(event.op is None for event in trace.events)
    moved = moved_in(trace)
    served = list(zip(trace.requests, trace.simulation.reserved, strict=False))
    # Moving recurrent weights takes more requests than there are weights: the last of them stand for the start.
    reserved: list[int | None] = [after for _, after in served[moved - started : moved]]
    reserved += [after for request, after in served[moved:] if request.action != "empty_cache"]
    return reserved + [None] * (len(trace.events) - len(reserved))
