"""A Checkpoint → the Report of ``graphmem inspect``: every table from the stored tensors and the config, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphmem.checkpoint import Checkpoint, ModelSpec
from graphmem.inference.kv_cache import NoCache, cache_layout
from graphmem.parameters.experts import routed_fraction
from graphmem.parameters.layers import LayerGroup, fold_layers
from graphmem.parameters.loading import NAIVE, load_with
from graphmem.parameters.roles import COMPONENTS, Component, components
from graphmem.parameters.schemes import SCHEMES
from graphmem.parameters.stored import StoredTensor, stored_tensors
from graphmem.parameters.ties import Tie, find_ties, without_copies
from graphmem.parameters.tree import module_tree
from graphmem.report import Column, Figure, Report, Section, Table
from graphmem.training.recipes import RECIPES
from graphmem.units import format_count

_PARAMETERS = Column("parameters", "Parameters", "count")
_BYTES = Column("bytes", "Bytes", "bytes")
_SHARE = Column("share", "Share", "share")


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
    columns = (Column("part", "Part"), _PARAMETERS, _SHARE, _BYTES)
    counts = [next((int(f.value or 0) for f in s.figures if f.key == "parameters"), 0) for s in sections]
    sizes = [spec.nbytes if spec.tensors else spec.declared_bytes or 0 for spec in specs]
    total = sum(counts) or 1
    rows = tuple((s.name or "model", n, n / total, size) for s, n, size in zip(sections, counts, sizes, strict=True))
    basis = specs[0].basis
    figures = (
        Figure("parameters", "Parameters", sum(counts), "count", basis),
        Figure("bytes", "Stored", sum(sizes), "bytes", basis),
    )
    return Section("all", figures, (Table("parts", "Parts", columns, rows, basis, _sum_row(rows, columns)),))


@dataclass(frozen=True)
class _Model:
    """One spec with everything the tables are computed from."""

    spec: ModelSpec
    tensors: tuple[StoredTensor, ...]
    roles: Mapping[str, Component]
    ties: tuple[Tie, ...]
    groups: tuple[LayerGroup, ...]
    outside: tuple[StoredTensor, ...]

    @property
    def parameters(self) -> int:
        return sum(t.parameters for t in self.tensors)

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest unit a loader places whole: a layer, or a module outside the layers."""
        modules: dict[str, int] = {}
        for tensor in self.outside:
            modules[tensor.spec.module] = modules.get(tensor.spec.module, 0) + tensor.parameters
        return max([group.parameters for group in self.groups] + list(modules.values()), default=0)


def _section(spec: ModelSpec, detail: Detail) -> tuple[Section, tuple[str, ...]]:
    if not spec.tensors and spec.declared_bytes is not None:
        return _declared(spec), ()
    stored, warnings = stored_tensors(spec)
    roles = components(spec.tensors)
    ties = find_ties(spec, stored, roles)
    tensors = without_copies(stored, ties)
    model = _Model(spec, tensors, roles, ties, *fold_layers(tensors))
    tables = [
        _components(model),
        _layers(model),
        _dtypes(model),
        *([module_tree(tensors, spec.basis, detail.depth)] if detail.depth is not None else []),
        _loading(model),
        *_loaders(model),
        *_cache(spec),
        _training(model),
        *([_ties(model)] if ties else []),
        *([_tensors(model)] if detail.tensors else []),
    ]
    return Section(spec.name, _figures(model), tuple(tables)), warnings


def _declared(spec: ModelSpec) -> Section:
    """A checkpoint of which an index tells the total and nothing tells the shapes."""
    total = Figure(
        "bytes", "Stored", spec.declared_bytes, "bytes", "read", f"metadata.total_size of {spec.declared_by}"
    )
    return Section(spec.name, (total, *_cache_figures(spec)), tuple(_cache(spec)))


def _figures(model: _Model) -> tuple[Figure, ...]:
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
    figures += _cache_figures(spec)
    return tuple(figures)


def _active(model: _Model) -> list[Figure]:
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


def _sum_row(
    rows: Sequence[tuple[object, ...]], columns: Sequence[Column], label: str = "Total"
) -> tuple[int | float | str | None, ...]:
    """The sum of every count, bytes and share column; text columns are blank but for the first."""
    total: list[int | float | str | None] = []
    for position, column in enumerate(columns):
        if column.unit == "text":
            total.append(label if position == 0 else None)
        else:
            values = [row[position] for row in rows]
            total.append(sum(v for v in values if isinstance(v, int | float)))
    return tuple(total)


def _components(model: _Model) -> Table:
    columns = (
        Column("component", "Component"),
        _PARAMETERS,
        _SHARE,
        _BYTES,
        Column("fp32_bytes", "As fp32", "bytes", in_mib=True),
    )
    total = model.parameters or 1
    rows: list[tuple[int | float | str | None, ...]] = []
    for component in COMPONENTS:
        of = [t for t in model.tensors if model.roles[t.spec.name] == component]
        if of:
            count = sum(t.parameters for t in of)
            rows.append((component, count, count / total, sum(t.spec.nbytes for t in of), 4 * count))
    return Table("components", "Components", columns, tuple(rows), model.spec.basis, _sum_row(rows, columns))


def _layers(model: _Model) -> Table:
    columns = (
        Column("layers", "Layers"),
        Column("each", "Each", "count"),
        _PARAMETERS,
        _SHARE,
        _BYTES,
        Column("fp32_bytes_each", "Each as fp32", "bytes", in_mib=True),
    )
    total = model.parameters or 1
    rows: list[tuple[int | float | str | None, ...]] = [
        (g.title, g.parameters, g.total_parameters, g.total_parameters / total, g.total_nbytes, 4 * g.parameters)
        for g in model.groups
    ]
    for module, tensors in _by_module(model.outside).items():
        count = sum(t.parameters for t in tensors)
        rows.append((module, count, count, count / total, sum(t.spec.nbytes for t in tensors), 4 * count))
    sums = list(_sum_row(rows, columns))
    sums[1] = sums[5] = None  # one layer's size says nothing summed over different layers
    return Table("layers", "Layers and what lies outside them", columns, tuple(rows), model.spec.basis, tuple(sums))


def _by_module(tensors: Iterable[StoredTensor]) -> dict[str, list[StoredTensor]]:
    modules: dict[str, list[StoredTensor]] = {}
    for tensor in tensors:
        name = tensor.spec.module if tensor.kind != "scale" else tensor.spec.name
        modules.setdefault(name or tensor.spec.name, []).append(tensor)
    if len(modules) > 12:  # a network without stacks: its top-level modules say more than every leaf
        shorter: dict[str, list[StoredTensor]] = {}
        for name, members in modules.items():
            shorter.setdefault(name.split(".")[0], []).extend(members)
        return shorter
    return modules


def _dtypes(model: _Model) -> Table:
    columns = (
        Column("dtype", "Stored as"),
        Column("holds", "Holds"),
        Column("tensors", "Tensors", "count"),
        _PARAMETERS,
        _BYTES,
        _SHARE,
    )
    groups: dict[tuple[str, str], list[StoredTensor]] = {}
    for tensor in model.tensors:
        groups.setdefault((tensor.spec.dtype.name, tensor.kind), []).append(tensor)
    total = model.spec.nbytes or 1
    rows: list[tuple[int | float | str | None, ...]] = []
    for (dtype, kind), of in groups.items():
        nbytes, count = sum(t.spec.nbytes for t in of), sum(t.parameters for t in of)
        packed = kind == "parameter" and count > sum(t.spec.elements for t in of)
        rows.append((dtype, "packed parameters" if packed else f"{kind}s", len(of), count, nbytes, nbytes / total))
    rows.sort(key=lambda row: -float(row[4] or 0))
    return Table("dtypes", "Dtypes as stored", columns, tuple(rows), model.spec.basis, _sum_row(rows, columns))


def _loading(model: _Model) -> Table:
    columns = (
        Column("dtype", "Every parameter as"),
        Column("largest_layer_bytes", "Largest layer", "bytes"),
        Column("total_bytes", "Total", "bytes"),
        Column("adam_bytes", "Training with Adam", "bytes"),
    )
    largest, total = model.largest_layer, model.parameters
    rows = tuple(
        (row.title, row.nbytes(largest), row.nbytes(total), row.adam_bytes * total if row.adam_bytes else None)
        for row in NAIVE
    )
    explain = tuple(
        f"{row.title}: {format_count(total)} parameters × {row.half_bytes / 2:g} B"
        + (f"; Adam × {row.adam_bytes} B (weights, gradients, two moments)" if row.adam_bytes else "")
        for row in NAIVE
    )
    return Table("loading", "Loading, every parameter at one width", columns, rows, "formula", explain=explain)


def _loaders(model: _Model) -> list[Table]:
    if any(t.kind == "scale" or (t.kind == "parameter" and t.spec.dtype.bits < 16) for t in model.tensors):
        return []  # already quantized: it is loaded as stored
    columns = (
        Column("loader", "As a loader stores it"),
        Column("packed_bytes", "Packed", "bytes"),
        Column("scale_bytes", "Scales", "bytes"),
        Column("kept_bytes", "Kept in 16 bit", "bytes"),
        Column("total_bytes", "Total", "bytes"),
    )
    rows, explain = [], []
    for scheme in SCHEMES:
        loaded = load_with(scheme, model.tensors, model.roles)
        if not loaded.packed:
            return []
        rows.append((scheme.title, loaded.packed, loaded.scales, loaded.kept, loaded.total))
        explain.append(f"{scheme.title}: {scheme.source}")
    note = "linear weights are packed; embeddings, head, norms, routers, convolutions and biases stay in 16 bit"
    return [
        Table(
            "loaders",
            "Loading, quantized by a real loader",
            columns,
            tuple(rows),
            "formula",
            notes=(note,),
            explain=tuple(explain),
        )
    ]


def _cache_figures(spec: ModelSpec) -> list[Figure]:
    layout = cache_layout(spec.config)
    if isinstance(layout, NoCache):
        return []
    figures = [
        Figure(
            "kv_cache_bytes_per_token",
            "KV cache a token (16-bit)",
            layout.bytes_per_token(),
            "bytes",
            "formula",
            layout.explain(),
        )
    ]
    if layout.context:
        figures.append(
            Figure(
                "kv_cache_bytes_at_context",
                f"KV cache at {layout.context:,} tokens (16-bit)",
                layout.bytes_at(layout.context),
                "bytes",
                "formula",
                layout.explain(),
            )
        )
    return figures


def _cache(spec: ModelSpec) -> list[Table]:
    layout = cache_layout(spec.config)
    columns = (
        Column("layers", "KV cache, 16-bit"),
        Column("count", "Layers", "count"),
        Column("bytes_per_token", "A token", "bytes"),
        Column("window", "Tokens kept", "count"),
        Column("bytes_at_context", "At full context", "bytes"),
    )
    if isinstance(layout, NoCache):
        # Where nothing is known of a model but its tensors (a live module, a bare file), there is nothing to say.
        note = f"cannot be told: {layout.reason}" if layout.missing else layout.reason
        return [Table("kv_cache", "KV cache", columns, (), "formula", notes=(note,))] if spec.config else []
    kinds: dict[tuple[str, int | None, str], list[int]] = {}
    for layer in layout.layers:
        kinds.setdefault((layer.kind, layer.window, layer.arithmetic), []).append(layer.elements)
    rows: list[tuple[int | float | str | None, ...]] = []
    explain = []
    for (kind, window, arithmetic), elements in kinds.items():
        kept = layout.context if window is None else min(window, layout.context or window)
        per_token = 2 * sum(elements)
        tokens = kept if per_token else None
        rows.append(
            (kind, len(elements), per_token, tokens, per_token * tokens if tokens else (0 if not per_token else None))
        )
        if arithmetic:
            explain.append(f"{kind}: {len(elements)} layers × {arithmetic} × 2 B = {format_count(per_token)} B a token")
        else:
            explain.append(f"{kind}: keeps no keys and values")
    sums = list(_sum_row(rows, columns))
    sums[3] = None
    if layout.context is None:
        sums[4] = None
    context = f" of {layout.context:,} tokens" if layout.context else ""
    title = (
        f"KV cache of one sequence, full context{context}"
        if context
        else "KV cache of one sequence (the config names no context length)"
    )
    return [Table("kv_cache", title, columns, tuple(rows), "formula", tuple(sums), layout.notes, tuple(explain))]


def _training(model: _Model) -> Table:
    columns = (
        Column("recipe", "Training with AdamW"),
        Column("bytes_per_parameter", "B/param", "count"),
        Column("weight_bytes", "Weights", "bytes"),
        Column("gradient_bytes", "Gradients", "bytes"),
        Column("optimizer_bytes", "Optimizer", "bytes"),
        Column("total_bytes", "Total", "bytes"),
    )
    count = model.parameters
    rows = tuple(
        (r.title, r.total, r.weights * count, r.gradients * count, (r.master + r.moments) * count, r.total * count)
        for r in RECIPES
    )
    explain = tuple(
        f"{r.title}: {r.weights} + {r.gradients} + {r.master + r.moments} = {r.total} bytes a parameter; {r.source}"
        for r in RECIPES
    )
    return Table(
        "training",
        "Training states, every parameter trained",
        columns,
        rows,
        "formula",
        notes=("activations come on top",),
        explain=explain,
    )


def _ties(model: _Model) -> Table:
    columns = (Column("owner", "Tied weight"), Column("names", "Also used as"), _PARAMETERS, Column("stored", "Stored"))
    rows = tuple(
        (t.owner, ", ".join(t.names), t.parameters, "again, as a copy" if t.stored_again else "once")
        for t in model.ties
    )
    return Table("ties", "Tied weights, counted once", columns, rows, model.spec.basis)


def _tensors(model: _Model) -> Table:
    columns = (
        Column("tensor", "Tensor"),
        Column("component", "Component"),
        Column("kind", "Kind"),
        Column("dtype", "Dtype"),
        Column("shape", "Shape"),
        _PARAMETERS,
        _BYTES,
    )
    rows = tuple(
        (
            t.spec.name,
            model.roles[t.spec.name],
            t.kind,
            t.spec.dtype.name,
            "×".join(map(str, t.spec.shape)) or "scalar",
            t.parameters,
            t.spec.nbytes,
        )
        for t in model.tensors
    )
    return Table("tensors", "Tensors", columns, rows, model.spec.basis, _sum_row(rows, columns))
