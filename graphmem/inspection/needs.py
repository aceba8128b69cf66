"""Tables of what it takes: to load in other precisions, to cache, to train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from graphmem.inference.kv_cache import CacheLayout, NoCache
from graphmem.inference.kv_dtypes import BFLOAT16
from graphmem.inference.layouts import CrossAttention, Nothing, State
from graphmem.inspection.model import Model
from graphmem.parameters.loading import NAIVE, Linears, load_with
from graphmem.parameters.schemes import SCHEMES
from graphmem.report import Column, Figure, Row, Table, sum_row
from graphmem.training.recipes import DIFFERENT_IN_BYTES, RECIPES
from graphmem.units import format_bytes, format_count


def loading_table(models: Sequence[Model]) -> Table:
    """Every parameter at one width, as accelerate counts; a quantized checkpoint as stored first."""
    columns = (
        Column("dtype", "Every parameter as"),
        Column("largest_layer_bytes", "Largest layer", "bytes"),
        Column("total_bytes", "Total", "bytes"),
        Column("adam_bytes", "Training with Adam", "bytes"),
    )
    name, largest, largest_bytes = max((model.largest_layer for model in models), key=lambda layer: layer[1])
    total = sum(model.parameters for model in models)
    rows: list[Row] = []
    explain: list[str] = []
    notes = [f"largest layer: {name}, {format_count(largest)} parameters"]
    if any(model.is_quantized for model in models):
        rows.append(("as stored", largest_bytes, sum(model.spec.nbytes for model in models), None))
        explain.append("as stored: the bytes of the tensors in the files, scales included")
        notes.append("quantized already: loaders take it as stored")
    elif not any(model.linears.shapes for model in models):
        notes.append(
            "no linear weights that loaders quantize were recognised, so there is no table of quantizing loaders"
        )
    for row in NAIVE:
        adam = row.adam_bytes * total if row.adam_bytes else None
        rows.append((row.title, row.nbytes(largest), row.nbytes(total), adam))
        training = f"; Adam × {row.adam_bytes} B (weights, gradients, two moments)" if row.adam_bytes else ""
        explain.append(f"{row.title}: {format_count(total)} parameters × {row.half_bytes / 2:g} B{training}")
    title = "Loading, every parameter at one width"
    return Table("loading", title, columns, tuple(rows), "formula", notes=tuple(notes), explain=tuple(explain))


def loaders_tables(models: Sequence[Model]) -> list[Table]:
    """What loaders that quantize store; nothing for a checkpoint that is quantized already."""
    if any(model.is_quantized for model in models) or not any(model.linears.shapes for model in models):
        return []
    columns = (
        Column("loader", "As a loader stores it"),
        Column("packed_bytes", "Packed", "bytes"),
        Column("scale_bytes", "Scales", "bytes"),
        Column("kept_bytes", "Kept in 16 bit", "bytes"),
        Column("total_bytes", "Total", "bytes"),
    )
    together = _together([model.linears for model in models])
    rows: list[Row] = []
    for scheme in SCHEMES:
        loaded = load_with(scheme, together)
        rows.append((scheme.title, loaded.packed, loaded.scales, loaded.kept, loaded.total))
    notes = (
        "linear weights are packed; embeddings, head, norms, routers, convolutions and biases stay in 16 bit; buffers come on top",
    )
    explain = tuple(f"{scheme.title}: {scheme.source}" for scheme in SCHEMES)
    title = "Loading, quantized by a real loader"
    return [Table("loaders", title, columns, tuple(rows), "formula", notes=notes, explain=explain)]


def _together(linears: Sequence[Linears]) -> Linears:
    shapes: Counter[tuple[int, int]] = Counter()
    for each in linears:
        shapes.update(each.shapes)
    return Linears(shapes, sum(each.others for each in linears))


def cache_figures(model: Model) -> list[Figure]:
    """The cache in two figures, where there is one."""
    layout = model.cache
    if isinstance(layout, NoCache):
        return []
    figures = []
    if state := layout.state_bytes():
        terms = "; ".join(
            f"{count} layers × ({cache.arithmetic})"
            for cache, count in layout.kinds().items()
            if isinstance(cache, State)
        )
        figures.append(Figure("state_bytes", "States a sequence (16-bit model)", state, "bytes", "formula", terms))
    if not layout.bytes_per_token():
        return figures
    token, later = layout.bytes_per_token(), layout.bytes_per_token(once_full=True)
    windows = f", {format_bytes(later)} once windows are full" if later != token else ""
    figures.insert(
        0,
        Figure(
            "kv_cache_bytes_per_token",
            f"KV cache a token (16-bit{windows})",
            token,
            "bytes",
            "formula",
            layout.explain(),
        ),
    )
    if layout.context:
        least = ", at least" if layout.is_partial else ""
        figures.append(
            Figure(
                "kv_cache_bytes_at_context",
                f"KV cache at {layout.context:,} tokens (16-bit{least})",
                layout.bytes_at(layout.context),
                "bytes",
                "formula",
                layout.explain(tokens=layout.context),
            )
        )
    return figures


def cache_tables(model: Model) -> list[Table]:
    """The cache by kind of layer, or why it cannot be told; nothing where nothing is known but tensors."""
    layout = model.cache
    if isinstance(layout, NoCache):
        note = f"cannot be told: {layout.reason}" if layout.missing else layout.reason
        return (
            [Table("kv_cache", "KV cache", _CACHE_COLUMNS, (), "formula", notes=(note,))] if model.spec.config else []
        )
    rows, explain = _cache_rows(layout)
    sums = list(sum_row(_CACHE_COLUMNS, rows, "At least" if layout.is_partial else "Total"))
    sums[2], sums[3] = sums[2] or None, None
    sums[4] = sums[4] or None if layout.context else None
    known = f"full context of {layout.context:,} tokens" if layout.context else "the config names no context length"
    title = f"KV cache of one sequence in 16 bit, {known}"
    return [Table("kv_cache", title, _CACHE_COLUMNS, rows, "formula", tuple(sums), layout.notes, explain)]


_CACHE_COLUMNS = (
    Column("kind", "Kind of layer"),
    Column("layers", "Layers", "count"),
    Column("bytes_per_token", "A token", "bytes"),
    Column("tokens", "Tokens kept", "count"),
    Column("bytes_at_context", "At full context", "bytes"),
)


def _cache_rows(layout: CacheLayout) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    rows: list[Row] = []
    explain: list[str] = []
    for cache, count in layout.kinds().items():
        if isinstance(cache, Nothing):
            rows.append((cache.kind, count, None, None, None))
            explain.append(f"{cache.kind}: keeps nothing of its own")
            continue
        if isinstance(cache, State):
            once = count * cache.nbytes(2)
            rows.append((f"state ({cache.name})", count, None, None, once))
            explain.append(
                f"state: {count} layers × ({cache.arithmetic}) = {format_count(once)} B a sequence, whatever its length"
            )
            continue
        per_token = count * cache.per_token(BFLOAT16)
        what = f"{count} layers × {cache.arithmetic} × 2 B = {format_count(per_token)} B"
        if isinstance(cache, CrossAttention):
            kept, per_kept = cache.tokens, count * cache.bytes_at(0, BFLOAT16)
            rows.append((f"cross-attention, a token of the {cache.of}", count, per_token, kept, per_kept or None))
            explain.append(f"cross-attention: {what} a token of the {cache.of}")
            continue
        kept = cache.kept(layout.context) if layout.context else cache.window
        at_context = count * cache.bytes_at(layout.context, BFLOAT16) if layout.context else None
        rows.append((cache.kind, count, per_token, kept, at_context or (per_token * kept if kept else None)))
        explain.append(f"{cache.kind}: {what} a token")
    return tuple(rows), tuple(explain)


def training_table(models: Sequence[Model], frozen: Sequence[Model] = ()) -> Table:
    """Weights, gradients and AdamW states by precision recipe; frozen parameters take weights only.

    Args:
        frozen: models whose every parameter is frozen (an adapter's base); those quantized stay as stored.
    """
    columns = (
        Column("recipe", "Training with AdamW"),
        Column("bytes_per_parameter", "B/param", "count", detail=True),
        Column("weight_bytes", "Weights", "bytes"),
        Column("gradient_bytes", "Gradients", "bytes"),
        Column("optimizer_bytes", "Optimizer", "bytes"),
        Column("total_bytes", "Total", "bytes"),
    )
    count, trained = sum(m.parameters for m in models), sum(m.trainable for m in models)
    held = sum(m.parameters for m in frozen if not m.is_quantized)
    as_stored = sum(m.spec.nbytes for m in frozen if m.is_quantized)
    every = trained == count or any(m.is_quantized for m in models)  # a packed checkpoint is unpacked to be trained
    trained = count if every else trained
    rows: list[Row] = []
    recipes = [recipe for recipe in RECIPES if recipe.key in DIFFERENT_IN_BYTES]
    for r in recipes:
        weights = r.weights * (count + held) + as_stored
        gradients, states = r.gradients * trained, (r.master + r.moments) * trained
        rows.append((r.title, r.total, weights, gradients, states, weights + gradients + states))
    explain = tuple(
        f"{r.title}: {r.weights} + {r.gradients} + {r.master + r.moments} = {r.total} bytes a parameter; {r.source}"
        for r in recipes
    )
    what = "every parameter" if every and not frozen else f"{format_count(trained)} parameters"
    rest = ", the rest frozen" if frozen or not every else ""
    title = f"Training states, {what} trained{rest}"
    return Table(
        "training", title, columns, tuple(rows), "formula", notes=("activations come on top",), explain=explain
    )
