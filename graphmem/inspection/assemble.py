"""The Report of ``graphmem inspect``: figures and tables of each section, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphmem.checkpoint import Checkpoint
from graphmem.config import text_config
from graphmem.inspection.model import Model, understand
from graphmem.inspection.needs import cache_figures, cache_tables, loaders_tables, loading_table, training_table
from graphmem.inspection.stored import (
    components_table,
    dtypes_table,
    layers_table,
    parts_table,
    tensors_table,
    ties_table,
)
from graphmem.parameters.experts import is_prediction_layer, routed_fraction
from graphmem.parameters.roles import NOT_TEXT
from graphmem.parameters.tree import module_tree
from graphmem.report import Figure, Report, Section, Table
from graphmem.units import format_count


@dataclass(frozen=True)
class Detail:
    """How much of the detail a report carries."""

    depth: int | None = None
    tensors: bool = False


def inspection(checkpoint: Checkpoint, detail: Detail = Detail()) -> Report:
    """What a checkpoint stores, by component, layer and dtype; what other precisions, a cache and training would take."""
    models: list[Model] = []
    warnings = list(checkpoint.warnings)
    for spec in checkpoint.sections:
        model, more = understand(spec)
        models.append(model)
        warnings += [f"{spec.name}: {text}" if spec.name else text for text in more]
    if len(models) == 1:
        sections = [_declared(models[0]) if _is_declared(models[0]) else _whole(models[0], detail)]
    else:
        sections = [_all(models), *(_declared(m) if _is_declared(m) else _part(m, detail) for m in models)]
    return Report("inspect", checkpoint.target, checkpoint.origin, tuple(sections), checkpoint.notes, tuple(warnings))


def _whole(model: Model, detail: Detail) -> Section:
    """A plain checkpoint: everything about it."""
    needs = (loading_table([model]), *loaders_tables([model]), *cache_tables(model), training_table([model]))
    tables = (*_stored_tables(model, detail), *needs, *_detail_tables(model, detail))
    return Section(model.spec.name, _figures(model), tables)


def _part(model: Model, detail: Detail) -> Section:
    """A component of a pipeline: what it stores; what it takes is told of all parts together."""
    caches = cache_tables(model) if cache_figures(model) else []
    tables = (*_stored_tables(model, detail), *_detail_tables(model, detail), *caches)
    return Section(model.spec.name, _figures(model), tables)


def _all(models: Sequence[Model]) -> Section:
    """What the parts of a pipeline, or an adapter and its base, add up to."""
    basis = models[0].spec.basis
    nbytes = sum(m.spec.nbytes if m.tensors else m.spec.declared_bytes or 0 for m in models)
    figures = (
        Figure("parameters", "Parameters", sum(m.parameters for m in models), "count", basis),
        Figure("bytes", "Stored", nbytes, "bytes", basis),
    )
    adapters = [m for m in models if m.spec.name == "adapter"]
    trained = training_table(adapters, [m for m in models if m not in adapters]) if adapters else training_table(models)
    tables = (parts_table(models), loading_table(models), *loaders_tables(models), trained)
    return Section("all", figures, tables)


def _is_declared(model: Model) -> bool:
    return not model.tensors and model.spec.declared_bytes is not None


def _declared(model: Model) -> Section:
    """A checkpoint of which an index tells the total and nothing tells the shapes."""
    spec = model.spec
    explain = f"metadata.total_size of {spec.declared_by}"
    total = Figure("bytes", "Stored", spec.declared_bytes, "bytes", "read", explain)
    return Section(spec.name, (total, *cache_figures(model)), tuple(cache_tables(model)))


def _stored_tables(model: Model, detail: Detail) -> list[Table]:
    return [
        components_table(model),
        layers_table(model),
        dtypes_table(model),
        *([module_tree(model.tensors, model.spec.basis, detail.depth)] if detail.depth is not None else []),
    ]


def _detail_tables(model: Model, detail: Detail) -> list[Table]:
    return [
        *([ties_table(model)] if model.ties else []),
        *([tensors_table(model)] if detail.tensors else []),
    ]


def _figures(model: Model) -> tuple[Figure, ...]:
    spec, basis = model.spec, model.spec.basis
    by_kind = {
        kind: sum(t.spec.nbytes for t in model.tensors if t.kind == kind) for kind in ("parameter", "scale", "buffer")
    }
    figures = [
        Figure("parameters", "Parameters", model.parameters, "count", basis),
        Figure("trainable_parameters", "Trainable", model.trainable, "count", basis),
        *_active(model),
        Figure("bytes", "Stored", spec.nbytes, "bytes", basis),
    ]
    if by_kind["scale"]:
        figures.append(Figure("scale_bytes", "of which scales", by_kind["scale"], "bytes", basis))
    if by_kind["buffer"]:
        figures.append(Figure("buffer_bytes", "of which buffers", by_kind["buffer"], "bytes", basis))
    figures += cache_figures(model)
    return tuple(figures)


def _active(model: Model) -> list[Figure]:
    fraction = routed_fraction(model.spec.config)
    layers = text_config(model.spec.config).get("num_hidden_layers")
    main = [
        t
        for t in model.tensors
        if not is_prediction_layer(t.spec.name, layers) and model.roles[t.spec.name] not in NOT_TEXT
    ]
    routed = sum(t.parameters for t in main if model.roles[t.spec.name] == "experts")
    if not routed or fraction is None:
        return []
    used, count = fraction
    total = sum(t.parameters for t in main)
    active = total - routed + routed * used // count
    left = model.parameters - total
    apart = f" (without {format_count(left)} in prediction layers and towers)" if left else ""
    explain = f"{format_count(total)}{apart} − {format_count(routed)} in experts × (1 − {used}/{count})"
    return [Figure("active_parameters", "Active per token", active, "count", "formula", explain)]
