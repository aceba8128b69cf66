"""A vLLM budget as an Estimate: the budget's items, what fits, the questions the other way round, the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from graphmem.config import architectures, text_config
from graphmem.engines.estimate import CacheRow, Estimate, Item, layer_cache_table, matrix, rules_of_thumb
from graphmem.engines.vllm.budget import Budget
from graphmem.engines.vllm.questions import least_utilization, longest_model_len, most_requests, what_starts
from graphmem.engines.vllm.specs import Spec, of_layers
from graphmem.engines.vllm.versions import NEWEST
from graphmem.report import Column, Figure, Row, Table
from graphmem.units import format_bytes


def estimate(found: Budget, target: str, origin: str, place: str) -> Estimate:
    """What ``graphmem infer --engine vllm`` answers. ``place``: the GPU, in words."""
    starts = found.starts
    left = (
        found.left(found.max_model_len, 1)
        if found.available > 0
        else found.available - found.request_bytes(found.max_model_len)
    )
    tables = [_cache(found), *_loading(found)]
    if starts:
        tables.append(
            matrix(
                found.left, found.max_model_len, found.schedule.max_num_seqs, "formula", "of the pool of blocks", _NOTES
            )
        )
    else:
        tables.append(_changes(found))
    everything = found.beside_cache + found.request_bytes(found.max_model_len)
    parameters = found.model.parameters // found.settings.tensor_parallel_size
    tables.append(rules_of_thumb(parameters, found.weight_bits, found.weights.total, everything))
    return Estimate(
        "vllm", target, f"vLLM {found.release}, {found.settings.usage}, on {place}; {origin}", tuple(_items(found)), tuple(_figures(found, left, place)),
        tuple(tables), tuple(_said(found)), tuple(_warnings(found)), starts, left,
    )  # fmt: skip


_NOTES = ("prefixes that requests share are not counted once", "more requests than fit wait, or are preempted")


def _items(found: Budget) -> Iterator[Item]:
    weights, profile = found.weights, found.profile
    parts = ", ".join(f"{role} {format_bytes(nbytes)}" for role, nbytes in weights.components.items())
    extra = (
        f"; rotary tables {format_bytes(weights.rotary)}; blocks not worth splitting {format_bytes(weights.rounding)}"
    )
    yield Item(
        "weights",
        "Weights",
        weights.total,
        found.model.spec.basis,
        parts + extra + (f"; LoRA slots {format_bytes(weights.lora)}" if weights.lora else ""),
    )
    larger = max(profile.forward, profile.sampling)
    yield Item("activations", "Activations, at the peak of profiling", larger, "formula", profile.explain)
    yield Item(
        "workspace",
        "cuBLAS workspace",
        profile.workspace,
        "formula",
        "aten/src/ATen/cuda/CublasHandlePool.cpp, by compute capability",
    )
    if kept := profile.kept + found.runner:
        yield Item(
            "kept",
            "Buffers of the runner",
            kept,
            "formula",
            f"penalties and image features {profile.kept:,} B, embeddings and tables {found.runner:,} B",
        )
    outside = found.non_torch
    yield Item(
        "non_torch",
        "Outside PyTorch",
        outside.nbytes,
        "calibrated",
        f"{format_bytes(outside.low)} to {format_bytes(outside.high)}: {outside.source}",
    )
    if found.graphs_planned:
        yield Item(
            "graphs",
            "CUDA graphs, as planned for",
            found.graphs_planned,
            "formula",
            "at least 1 MiB a size, piecewise and whole",
        )
    yield Item(
        "cache", "KV cache: the pool of blocks", max(found.available, 0), "formula",
        f"{found.total:,} B × {found.utilization:g} − everything above",
    )  # fmt: skip


def _figures(found: Budget, left: int, place: str) -> Iterator[Figure]:
    length = found.max_model_len
    yield Figure(
        "fits", f"Starts on {place}", "yes" if found.starts else "no", "text", "calibrated",
        f"the pool must hold one request of max_model_len, {length:,} tokens: {format_bytes(found.request_bytes(length))}",
    )  # fmt: skip
    if not found.starts:
        yield Figure("margin", "Over by", -left, "bytes", "calibrated")
    yield Figure(
        "weights", "Weights", found.weights.total, "bytes", found.model.spec.basis, 'the log\'s "Model loading took"'
    )
    yield Figure(
        "requested",
        "gpu_memory_utilization",
        f"{found.utilization:g}",
        "text",
        "assumed",
        f"{format_bytes(found.requested)} of {format_bytes(found.total)}",
    )
    yield Figure(
        "available", "KV cache", max(found.available, 0), "bytes", "formula", 'the log\'s "Available KV cache memory"'
    )
    yield Figure(
        "blocks",
        "Blocks",
        found.blocks,
        "count",
        "formula",
        f"of {found.pool.block_bytes:,} B, {found.block_size} tokens each before hybrids",
    )
    yield Figure("tokens", "Tokens in the cache", found.tokens, "count", "formula", 'the log\'s "GPU KV cache size"')
    yield Figure(
        "concurrency",
        f"Requests of {length:,} tokens at once",
        f"{found.concurrency:.2f}",
        "text",
        "formula",
        'the log\'s "Maximum concurrency"',
    )
    yield Figure(
        "max_num_seqs", "Sequences a step, at most", found.schedule.max_num_seqs, "count", "assumed", "max_num_seqs"
    )
    yield Figure(
        "max_num_batched_tokens",
        "Tokens a step, at most",
        found.schedule.max_num_batched_tokens,
        "count",
        "assumed",
        "max_num_batched_tokens",
    )
    least = least_utilization(found)
    said = f"{least:g}" if least is not None else "none: more than all of it"
    yield Figure(
        "least_utilization",
        f"Least utilization for one request of {length:,}",
        said,
        "text",
        "calibrated",
        "in hundredths",
    )
    longest = longest_model_len(found)
    yield Figure(
        "longest",
        "Longest max_model_len that starts",
        longest or 0,
        "count",
        "calibrated",
        "up to the model's own context",
    )
    yield from _process(found)


def _process(found: Budget) -> Iterator[Figure]:
    """What nvidia-smi shows of the process once it serves: the context and, before 0.20, graphs lie outside the share."""
    if found.device.context is None or not found.starts:
        return
    low, median, high = found.device.context
    outside = 0 if found.release.graphs_in_budget else found.graphs.nbytes
    yield Figure(
        "driver", "nvidia-smi, serving", found.requested + (0 if found.release.counts_context else median) + outside, "bytes", "calibrated",
        f"the share, the CUDA context of {format_bytes(median)} ({format_bytes(low)} to {format_bytes(high)})"
        + (f", and CUDA graphs of about {format_bytes(outside)} ({found.graphs.source})" if outside else ""),
    )  # fmt: skip


def _changes(found: Budget) -> Table:
    """What would make it start, one change at a time."""
    rows: list[Row] = []
    for change, tried in what_starts(found):
        gpus = tried.settings.tensor_parallel_size
        rows.append((change, gpus, tried.weights.total, tried.available, round(tried.concurrency, 2)))
    columns = (
        Column("change", "Change"), Column("gpus", "GPUs", "count"), Column("weights", "Weights, each", "bytes"), Column("available", "KV cache, each", "bytes"),
        Column("requests", "Requests at once"),
    )  # fmt: skip
    note = () if rows else ("none of: an fp8 cache, a shorter context, quantized weights, up to 8 GPUs",)
    return Table("starts_with", "What would make it start", columns, tuple(rows), "calibrated", None, note)


def _cache(found: Budget) -> Table:
    """What one request of max_model_len takes, by kind of layer."""
    length = found.max_model_len
    kinds: dict[tuple[str, Spec | None], int] = {}
    for cache, specs in of_layers(found.cached_layers, found.specs):
        for spec in specs or (None,):
            kinds[cache.kind, spec] = kinds.get((cache.kind, spec), 0) + 1
    rows: list[CacheRow] = []
    for (kind, spec), count in kinds.items():
        if spec is None:
            rows.append((kind, count, 0, None, None, "keeps nothing of its own"))
            continue
        state = spec.kind == "state"
        kept = spec.blocks(length, found.tokens_in_flight) * spec.block
        padded = f", in a page of {spec.page:,} B" if spec.page > spec.block * spec.per_token or state else ""
        each = f"({spec.arithmetic})" if state else spec.arithmetic
        said = f"{count} layers × {each}{padded}" + ("" if state else f"; {spec.block:,} tokens a block")
        nbytes = count * spec.bytes_of_request(length, found.tokens_in_flight)
        rows.append((kind, count, 0 if state else count * spec.per_token, None if state else kept, nbytes, said))
    table = layer_cache_table(rows, f"Cache of a request of {length:,} tokens, in whole blocks")
    padding = found.request_bytes(length) - sum(row[4] or 0 for row in rows)
    note = f"layers share blocks in groups of equal length: {format_bytes(padding)} more are held, {format_bytes(found.request_bytes(length))} in all"
    return replace(table, notes=(note,)) if padding > 0 else table


def _loading(found: Budget) -> Iterator[Table]:
    weights = found.weights
    columns = (Column("part", "Weights"), Column("bytes", "Bytes", "bytes"))
    rows: list[Row] = [(role, nbytes) for role, nbytes in weights.components.items()]
    rows += [
        (title, nbytes)
        for title, nbytes in (
            ("rotary tables", weights.rotary),
            ("LoRA slots", weights.lora),
            ("allocator's rounding", weights.rounding),
        )
        if nbytes
    ]
    yield Table(
        "weights_by_part", "Weights as loaded", columns, tuple(rows), "formula", ("Total", weights.total), weights.notes
    )


def _said(found: Budget) -> Iterator[str]:
    settings = found.settings
    yield f"dtype: {found.dtype}; KV cache: {found.kv.key}; block size {found.block_size}"
    if settings.tensor_parallel_size > 1:
        yield f"one of {settings.tensor_parallel_size} GPUs (tensor parallel); every figure is of one"
    groups = found.pool.groups
    if len(kinds := dict.fromkeys(f"{group.spec.kind} ({group.spec.block:,} tokens a block)" for group in groups)) > 1:
        counts = {
            kind: sum(f"{g.spec.kind} ({g.spec.block:,} tokens a block)" == kind for g in groups) for kind in kinds
        }
        said = ", ".join(f"{count} of {kind}" for kind, count in counts.items())
        yield f"groups of {groups[0].layers} layers that share tables of blocks: {said}"
    yield "prefix sharing is left out: requests that begin alike take less"
    yield from found.layout.notes
    most = most_requests(found, found.max_model_len)
    yield f"at most {most:,} request{'' if most == 1 else 's'} of {found.max_model_len:,} tokens, {most_requests(found, max(found.max_model_len // 4, 1)):,} of a quarter of it"


#: Models with cross-attention that vLLM's registry still has (model_executor/models/registry.py of 0.28; the others are in its list of removed ones).
_ENCODERS = {"WhisperForConditionalGeneration", "NemotronParseForConditionalGeneration"}


def _warnings(found: Budget) -> Iterator[str]:
    if found.available <= 0:
        yield f"nothing is left for the cache: weights and profiling take {format_bytes(found.beside_cache)} of {format_bytes(found.requested)}"
    elif not found.starts:
        yield (
            f"vLLM refuses to start: one request of {found.max_model_len:,} tokens needs {format_bytes(found.request_bytes(found.max_model_len))} of cache; "
            "lower --max-model-len or raise --gpu-memory-utilization"
        )
    if found.release.since(NEWEST) and str(found.release.version) != NEWEST:
        yield f"vLLM {found.release} is newer than {NEWEST}, the last release read; counted as that"
    if (
        found.layout.cross
        and found.release.since("0.11")
        and not set(architectures(found.model.spec.config)) & _ENCODERS
    ):
        yield "vLLM has served no encoder-decoder but Whisper since 0.11; the figures are what it would take"
    if found.bfloat16_refused:
        yield f"vLLM refuses bfloat16 on {found.device.name}, whose compute capability is below 8.0; add --dtype float16"
    if found.utilization > 0.95:
        yield "the CUDA context and, before 0.20, CUDA graphs lie outside the share: above 0.95 little is left for them"
    text = text_config(found.model.spec.config)
    if found.settings.draft_layers == 0 and text.get("num_nextn_predict_layers"):
        yield "the model has prediction layers (MTP); --draft-layers 1 counts their cache as well"
