"""Buffers of llama.cpp as an Estimate: what lies on the GPU, what stays in host memory, what fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from graphmem.engines.estimate import CacheRow, Estimate, Item, layer_cache_table, matrix, rules_of_thumb
from graphmem.engines.llama_cpp.buffers import Buffers
from graphmem.inference.layouts import LayerCache, Nothing, State
from graphmem.report import Column, Figure, Row, Table
from graphmem.tracing.device import Device
from graphmem.units import format_bytes


def estimate(found: Buffers, device: Device, target: str, origin: str, place: str) -> Estimate:
    """What ``graphmem infer --engine llama.cpp`` answers. ``place``: the GPU, in words."""
    margin = fits = None
    tables = [_cache(found), _host(found), _points(found)]
    if device.memory is not None:
        free = device.memory - device.context_size
        margin = free - found.total
        fits = margin >= 0
        longest = found.layout.context or found.asked
        tables.append(
            matrix(
                _room(found, free),
                longest,
                64,
                "formula",
                "on the GPU, its CUDA context counted; slots share one cache",
            )
        )
        if not fits:
            tables.append(_layers(found, free))
    gpu, host = found.weights
    tables.append(rules_of_thumb(found.model.parameters, found.model.stored_bits, gpu + host, found.total))
    return Estimate(
        "llama.cpp", target, f"llama.cpp v0.5.0 on {place}; {origin}", tuple(_items(found, device)), tuple(_figures(found, device, place, fits, margin)),
        tuple(tables), tuple(_said(found)), (), fits, margin,
    )  # fmt: skip


def _items(found: Buffers, device: Device) -> Iterator[Item]:
    gpu, _ = found.weights
    yield Item(
        "weights",
        "Model buffer",
        gpu,
        found.model.spec.basis,
        "tensors of the layers on the GPU, each aligned to 128 B",
    )
    window = f", {found.window_cells:,} of sliding layers" if found.window_cells else ""
    yield Item(
        "cache", "KV buffer", found.cache[0], "formula",
        f"{found.cells:,} cells{window}, keys {found.settings.cache_type_k}, values {found.settings.cache_type_v}; states in fp32",
    )  # fmt: skip
    fullest = max(found.points, key=found.points.__getitem__)
    yield Item(
        "activations", "Compute buffer", found.compute, "formula",
        f"fullest at {fullest}, {found.tokens:,} tokens and {found.outputs:,} rows of logits; the allocator may leave up to 15 % of holes",
    )  # fmt: skip
    if device.context is not None:
        low, median, high = device.context
        yield Item(
            "overhead",
            "CUDA context",
            median,
            "calibrated",
            f"{format_bytes(low)} to {format_bytes(high)} measured; cuBLAS and pools of kernels come on top",
        )


def _figures(found: Buffers, device: Device, place: str, fits: bool | None, margin: int | None) -> Iterator[Figure]:
    if fits is not None and margin is not None:
        yield Figure(
            "fits",
            f"Fits on {place}",
            "yes" if fits else "no",
            "text",
            "calibrated",
            "buffers and the median CUDA context",
        )
        yield Figure("margin", "Left on the GPU" if fits else "Over by", abs(margin), "bytes", "calibrated")
    layers = len(found.layout.layers)
    yield Figure("parameters", "Parameters", found.model.parameters, "count", found.model.spec.basis)
    yield Figure(
        "gpu_layers",
        "Layers on the GPU",
        f"{max(layers + 1 - found.first_on_gpu, 0)} of {layers + 1}",
        "text",
        "assumed",
        "-ngl; the output layer is one of them",
    )
    yield Figure(
        "kv_tokens", "Tokens in the cache", found.cells * found.streams, "count", "formula", "-c, in steps of 256"
    )
    yield Figure("host", "Host memory", sum(_in_host(found).values()), "bytes", "formula")


def _in_host(found: Buffers) -> dict[str, int]:
    return {
        "embeddings and layers left out": found.weights[1], "KV of layers left out": found.cache[1], "compute buffer (pinned)": found.host_compute,
        "logits (pinned)": found.output,
    }  # fmt: skip


def _host(found: Buffers) -> Table:
    rows: list[Row] = [(name, nbytes) for name, nbytes in _in_host(found).items()]
    notes = ("with mmap, weights in host memory are the file's own pages",)
    columns = (Column("part", "In host memory"), Column("bytes", "Bytes", "bytes"))
    return Table(
        "host", "Host memory", columns, tuple(rows), "formula", ("Total", sum(_in_host(found).values())), notes
    )


def _points(found: Buffers) -> Table:
    rows: list[Row] = [(name, nbytes) for name, nbytes in sorted(found.points.items(), key=lambda item: -item[1])]
    columns = (Column("point", "Point of the graph"), Column("bytes", "Bytes", "bytes"))
    notes = ("the compute buffer is as large as the fullest of them",)
    return Table("points", "Compute buffer", columns, tuple(rows), "formula", None, notes)


def _cache(found: Buffers) -> Table:
    rows: list[CacheRow] = []
    seen: dict[LayerCache, list[int]] = {}
    for number, layer in enumerate(found.layout.layers):
        for cache in layer:
            seen.setdefault(cache, []).append(number)
    keys, _ = found.kinds
    for cache, numbers in seen.items():
        count = len(numbers)
        if isinstance(cache, Nothing):
            rows.append((cache.kind, count, 0, None, None, "keeps nothing of its own"))
            continue
        total = count * found.bytes_of(cache)
        if isinstance(cache, State):
            rows.append(
                (
                    f"state ({cache.name})",
                    count,
                    0,
                    None,
                    total,
                    f"{count} layers × ({cache.explained(4, 4, columns_less=1)}) for each of {found.settings.parallel} slots",
                )
            )
            continue
        cells = found.window_cells if cache.window else found.cells
        per_token = total // max((cells or 1) * found.streams, 1)
        rows.append(
            (cache.kind, count, per_token, cells, total, f"{count} layers × {cache.arithmetic}, keys at {keys.words}")
        )
    return layer_cache_table(rows, "Cache, all slots together")


def _room(found: Buffers, free: int) -> Callable[[int, int], int]:
    def room(tokens: int, slots: int) -> int:
        settings = replace(found.settings, ctx_size=tokens * slots, parallel=slots, kv_unified=True)
        return free - replace(found, settings=settings).total

    return room


def _layers(found: Buffers, free: int) -> Table:
    """The most layers that fit, for ``-ngl``."""
    layers = len(found.layout.layers)
    rows: list[Row] = []
    for count in range(layers + 1, -1, -1):
        other = replace(found, settings=replace(found.settings, gpu_layers=count))
        left = free - other.total
        if left >= 0:
            rows.append((count, other.total, left, sum(_in_host(other).values())))
            break
    columns = (
        Column("gpu_layers", "-ngl", "count"), Column("bytes", "On the GPU", "bytes"), Column("left", "Left", "bytes"), Column("host", "Host memory", "bytes"),
    )  # fmt: skip
    notes = ("the most layers that fit; the rest is computed on the CPU",) if rows else ("not even without layers",)
    return Table("gpu_layers_that_fit", "Layers that fit", columns, tuple(rows), "calibrated", None, notes)


def _said(found: Buffers) -> Iterator[str]:
    given = found.settings
    yield f"context {found.asked:,} tokens for {given.parallel} slot{'s' if given.parallel > 1 else ''}{', shared' if given.parallel > 1 and given.kv_unified else ''}"
    yield f"batch {given.batch_size:,}, micro-batch {given.ubatch_size:,}, flash attention {'on' if given.flash_attention else 'off'}"
    yield "logits of " + (
        "a whole micro-batch"
        if given.all_logits
        else "one row a slot, as llama-server makes them since 2026; --all-logits for others"
    )
    yield from found.layout.notes
