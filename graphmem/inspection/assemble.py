"""The Report of ``graphmem inspect``: figures and tables of each section, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphmem.checkpoint import Checkpoint, ModelSpec
from graphmem.inspection.model import BYTES, PARAMETERS, SHARE, Model, understand
from graphmem.inspection.needs import cache_figures, cache_tables, loaders_tables, loading_table, training_table
from graphmem.inspection.stored import components_table, dtypes_table, layers_table, tensors_table, ties_table
from graphmem.parameters.experts import routed_fraction
from graphmem.parameters.tree import module_tree
from graphmem.report import Column, Figure, Report, Section, Table, sum_row
from graphmem.units import format_count


@dataclass(frozen=True)
class Detail:
    """How much of the detail a report carries."""

    depth: int | None = None
    tensors: bool = False


def inspection(checkpoint: Checkpoint, detail: Detail = Detail()) -> Report:
    """What a checkpoint stores, by component, layer and dtype; what other precisions, a cache and training would take."""
    sections, warnings = [], list(checkpoint.warnings)
    for spec in checkpoint.sections:
        section, more = _section(spec, detail)
        sections.append(section)
        warnings += [f"{spec.name}: {text}" if spec.name else text for text in more]
    if len(sections) > 1:
        sections.insert(0, _together(sections, checkpoint.sections))
    return Report("inspect", checkpoint.target, checkpoint.origin, tuple(sections), checkpoint.notes, tuple(warnings))


def _together(sections: Sequence[Section], specs: Sequence[ModelSpec]) -> Section:
    """What the parts of a pipeline, or an adapter and its base, add up to."""
    columns = (Column("part", "Part"), PARAMETERS, SHARE, BYTES)
    counts = [next((int(f.value or 0) for f in s.figures if f.key == "parameters"), 0) for s in sections]
    sizes = [spec.nbytes if spec.tensors else spec.declared_bytes or 0 for spec in specs]
    total = sum(counts) or 1
    rows = tuple((s.name or "model", n, n / total, size) for s, n, size in zip(sections, counts, sizes, strict=True))
    basis = specs[0].basis
    figures = (
        Figure("parameters", "Parameters", sum(counts), "count", basis),
        Figure("bytes", "Stored", sum(sizes), "bytes", basis),
    )
    return Section("all", figures, (Table("parts", "Parts", columns, rows, basis, sum_row(columns, rows)),))


def _section(spec: ModelSpec, detail: Detail) -> tuple[Section, tuple[str, ...]]:
    if not spec.tensors and spec.declared_bytes is not None:
        return _declared(spec), ()
    model, warnings = understand(spec)
    tables = [
        components_table(model),
        layers_table(model),
        dtypes_table(model),
        *([module_tree(model.tensors, spec.basis, detail.depth)] if detail.depth is not None else []),
        loading_table(model),
        *loaders_tables(model),
        *cache_tables(spec),
        training_table(model),
        *([ties_table(model)] if model.ties else []),
        *([tensors_table(model)] if detail.tensors else []),
    ]
    return Section(spec.name, _figures(model), tuple(tables)), warnings


def _declared(spec: ModelSpec) -> Section:
    """A checkpoint of which an index tells the total and nothing tells the shapes."""
    total = Figure(
        "bytes", "Stored", spec.declared_bytes, "bytes", "read", f"metadata.total_size of {spec.declared_by}"
    )
    return Section(spec.name, (total, *cache_figures(spec)), tuple(cache_tables(spec)))


def _figures(model: Model) -> tuple[Figure, ...]:
    spec, basis = model.spec, model.spec.basis
    trainable = sum(t.parameters for t in model.tensors if t.spec.trainable)
    by_kind = {
        kind: sum(t.spec.nbytes for t in model.tensors if t.kind == kind) for kind in ("parameter", "scale", "buffer")
    }
    figures = [
        Figure("parameters", "Parameters", model.parameters, "count", basis),
        Figure("trainable_parameters", "Trainable", trainable, "count", basis),
        *_active(model),
        Figure(
            "bytes",
            "Stored",
            spec.nbytes,
            "bytes",
            basis,
            f"{format_count(spec.nbytes)} bytes in {len(spec.tensors)} tensors",
        ),
    ]
    if by_kind["scale"]:
        figures.append(Figure("scale_bytes", "of which scales", by_kind["scale"], "bytes", basis))
    if by_kind["buffer"]:
        figures.append(Figure("buffer_bytes", "of which buffers", by_kind["buffer"], "bytes", basis))
    figures += cache_figures(spec)
    return tuple(figures)


def _active(model: Model) -> list[Figure]:
    routed = sum(t.parameters for t in model.tensors if model.roles[t.spec.name] == "experts")
    fraction = routed_fraction(model.spec.config)
    if not routed or fraction is None:
        return []
    used, count = fraction
    active = model.parameters - routed + routed * used // count
    return [
        Figure(
            "active_parameters",
            "Active per token",
            active,
            "count",
            "formula",
            f"{format_count(model.parameters)} − {format_count(routed)} in experts × (1 − {used}/{count})",
        )
    ]
