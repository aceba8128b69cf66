"""Tables of what it takes: to load in other precisions, to cache, to train."""

from __future__ import annotations

from graphmem.checkpoint import ModelSpec
from graphmem.inference.kv_cache import NoCache, cache_layout
from graphmem.inspection.model import Model
from graphmem.parameters.loading import NAIVE, load_with
from graphmem.parameters.schemes import SCHEMES
from graphmem.report import Column, Figure, Row, Table, sum_row
from graphmem.training.recipes import RECIPES
from graphmem.units import format_count


def loading_table(model: Model) -> Table:
    """Every parameter at one width, as accelerate counts."""
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


def loaders_tables(model: Model) -> list[Table]:
    """What loaders that quantize store; nothing for a checkpoint that is quantized already."""
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


def cache_figures(spec: ModelSpec) -> list[Figure]:
    """The cache in two figures, where there is one."""
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


def cache_tables(spec: ModelSpec) -> list[Table]:
    """The cache by kind of layer, or why it cannot be told."""
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
    rows: list[Row] = []
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
    sums = list(sum_row(columns, rows))
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


def training_table(model: Model) -> Table:
    """Weights, gradients and AdamW states by precision recipe."""
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
