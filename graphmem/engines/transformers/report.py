"""A traced ``generate`` as an Estimate: what is alive at its peak, prefill against decode, the cache by layer, the matrix."""

from __future__ import annotations

from collections.abc import Iterator

from graphmem.engines.estimate import CacheRow, Estimate, Item, layer_cache_table, matrix, rules_of_thumb
from graphmem.engines.transformers.run import Generated, room_of
from graphmem.inference.kv_cache import CacheLayout
from graphmem.inference.kv_dtypes import kv_dtype_named
from graphmem.inference.layouts import CrossAttention, Nothing, State
from graphmem.report import Column, Figure, Row, Table
from graphmem.units import format_bytes


def estimate(
    found: Generated,
    target: str,
    origin: str,
    place: str,
    layout: CacheLayout | None,
) -> Estimate:
    """What ``graphmem infer --engine transformers`` answers.

    Args:
        place: the GPU, in words.
        layout: the cache that the config implies; None where it cannot be told.
    """
    tables = [_phases(found)]
    if layout is not None:
        tables.append(_cache(found, layout))
    memory, margin = found.device.memory, None
    if memory is not None and found.device.type == "cuda":
        longest = found.context or found.settings.kept_tokens + 1
        tables.append(
            matrix(room_of(found), longest, 256, "traced", "prefilled at once, on the GPU, its CUDA context counted")
        )
    bits = 8 * _element_bytes(found) if found.stored is None else round(8 * found.stored / found.parameters, 2)
    tables.append(rules_of_thumb(found.parameters, bits, found.weights, found.peak.nbytes - found.saved))
    if memory is not None:
        margin = memory - found.device.context_size - found.reserved
    said = f"generate of transformers, traced on the meta device for {place}; no weights, no GPU; {origin}"
    return Estimate(
        "transformers", target, said, tuple(_items(found)), tuple(_figures(found, place, margin)), tuple(tables), tuple(_said(found)), (), found.fits, margin
    )  # fmt: skip


def _element_bytes(found: Generated) -> int:
    sizes: dict[str, int] = {}
    for event in found.first.events:
        if event.op is not None:
            break
        block = found.first.blocks[event.block]
        sizes[block.dtype] = sizes.get(block.dtype, 0) + block.nbytes
    return 4 if max(sizes, key=sizes.__getitem__, default="") == "float32" else 2


def _items(found: Generated) -> Iterator[Item]:
    kinds, peak = dict(found.peak.kinds), found.peak
    weights = kinds.pop("parameter", 0) + kinds.pop("buffer", 0) - found.saved
    stored = "quantized weights as stored; " if found.saved else ""
    yield Item(
        "weights",
        "Weights",
        weights,
        "built" if not found.saved else "read",
        f"{stored}parameters and buffers, each rounded up to 512 B",
    )
    yield Item(
        "cache", "KV cache and states", kinds.pop("kv_cache", 0), "traced", f"{found.settings.cache} cache, at the peak"
    )
    workspace = kinds.pop("workspace", 0)
    yield Item("activations", "Activations", sum(kinds.values()), "traced", f"alive at the peak: {peak.where}")
    yield Item("workspace", "Workspaces of libraries", workspace, "traced", "cuBLAS, by compute capability")
    if found.device.type != "cuda":
        return
    rounding = found.allocated - peak.nbytes
    yield Item(
        "rounding",
        "Blocks not worth splitting",
        rounding,
        "simulated",
        "torch.cuda.max_memory_allocated() counts them whole",
    )
    yield Item(
        "cached",
        "Reserved beyond that",
        found.reserved - (found.allocated - found.saved),
        "simulated",
        "free parts of segments, kept by the caching allocator",
    )
    if found.device.context is not None:
        low, median, high = found.device.context
        yield Item(
            "overhead", "CUDA context", median, "calibrated", f"{format_bytes(low)} to {format_bytes(high)} measured"
        )


def _figures(found: Generated, place: str, margin: int | None) -> Iterator[Figure]:
    if found.fits is not None and margin is not None:
        yield Figure(
            "fits",
            f"Fits on {place}",
            "yes" if found.fits else "no",
            "text",
            "calibrated",
            "PyTorch's allocator on the GPU's memory, less the median CUDA context",
        )
        yield Figure("margin", "Left on the GPU" if margin >= 0 else "Over by", abs(margin), "bytes", "calibrated")
    yield Figure("parameters", "Parameters", found.parameters, "count", "built")
    yield Figure(
        "loaded", "Loaded", found.weights, "bytes", "built" if not found.saved else "read", "parameters and buffers"
    )
    yield Figure("prefill", "Prefill, peak", found.prefill.nbytes - found.saved, "bytes", "traced", found.prefill.where)
    if found.decode is not None:
        yield Figure(
            "decode", "Last decode step, peak", found.decode.nbytes - found.saved, "bytes", "traced", found.decode.where
        )
    yield Figure("steady", "After generating, cache held", found.steady - found.saved, "bytes", "traced")
    yield Figure(
        "allocated",
        "Peak allocated",
        found.allocated - found.saved,
        "bytes",
        "simulated",
        "torch.cuda.max_memory_allocated()",
    )
    yield Figure(
        "reserved",
        "Reserved",
        found.reserved,
        "bytes",
        "simulated",
        "of both traces; a growing cache may fragment it further",
    )


def _phases(found: Generated) -> Table:
    columns = (
        Column("phase", "Phase"), Column("tokens", "Tokens kept", "count"), Column("peak", "Peak", "bytes"), Column("cache", "Cache", "bytes"),
        Column("activations", "Activations", "bytes"), Column("at", "Peak at", detail=True),
    )  # fmt: skip
    rows: list[Row] = []
    moments = [("prefill", found.settings.prompt, found.prefill)]
    if found.decode is not None:
        moments.append(("last decode step", found.settings.kept_tokens, found.decode))
    for name, tokens, moment in moments:
        active = moment.kinds.get("activation", 0) + moment.kinds.get("temporary", 0)
        rows.append((name, tokens, moment.nbytes - found.saved, moment.kinds.get("kv_cache", 0), active, moment.where))
    return Table("phases", "Prefill and decode", columns, tuple(rows), "traced")


def _cache(found: Generated, layout: CacheLayout) -> Table:
    """What the config says the cache of one request is; the trace shows what transformers keeps of it."""
    element = _element_bytes(found)
    kv = kv_dtype_named("float32" if element == 4 else "bfloat16")
    tokens = found.settings.kept_tokens
    rows: list[CacheRow] = []
    for cache, count in layout.kinds().items():
        if isinstance(cache, Nothing):
            rows.append((cache.kind, count, 0, None, None, "keeps nothing of its own"))
        elif isinstance(cache, State):
            rows.append(
                (
                    f"state ({cache.name})",
                    count,
                    0,
                    None,
                    count * cache.nbytes(element),
                    cache.arithmetic,
                )
            )
        else:
            kept = cache.kept(tokens)
            what = f"{count} layers × {cache.arithmetic} × {kv.words}" + (
                f" × {kept:,} tokens of the {cache.of}" if isinstance(cache, CrossAttention) else f" × {kept:,} tokens"
            )
            rows.append(
                (cache.kind, count, count * cache.per_token(kv), kept, count * cache.bytes_at(tokens, kv), what)
            )
    return layer_cache_table(rows, f"Cache of a request of {tokens:,} tokens, by the config")


def _said(found: Generated) -> Iterator[str]:
    given = found.settings
    yield f"{given.batch_size} × {given.prompt:,} tokens of prompt, {given.new_tokens:,} new ones" + (
        f", {given.beams} beams"
        if given.beams > 1
        else f", {given.samples} samples of each"
        if given.samples > 1
        else ""
    )
    yield "logits of " + (
        "every token of the prompt" if given.all_logits else "the last token only, where the model can"
    )
    for key in ("weights", "attention"):
        if key in found.first.settings:
            yield f"{key}: {found.first.settings[key]}"
    if found.saved:
        yield "the checkpoint is quantized: its weights count as stored, activations are those of unpacked weights; copies that kernels unpack are not counted"
    if given.cache.startswith(("quanto", "hqq")):
        yield "quantized caches: transformers' own layer class; codes, scales and zero points in groups of 64"
    yield "weights loaded by from_pretrained(device_map=…), which since transformers 4.50 takes them in one block; prompts have one length"
    # Which token is chosen changes no size.
    chosen = {what: where for what, where in found.first.assumptions.items() if "aten.argmax" not in where}
    yield from (f"assumed: {what}; first at {where}" for what, where in chosen.items())
