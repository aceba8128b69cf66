"""Reserved memory in a report: the figures people confuse side by side, what settings would change, and where a step dies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from graphmem.report import Column, Figure, Row, Table
from graphmem.timeline.allocator.conf import AllocConf, alloc_conf
from graphmem.timeline.allocator.out_of_memory import explained
from graphmem.timeline.allocator.simulate import OutOfMemory, Simulation
from graphmem.timeline.reserved import blocks_of, moved_in, simulated

if TYPE_CHECKING:
    from graphmem.tracing.trace import Trace

#: Settings that a report tries beside the one in force.
TRIED = (
    "", "expandable_segments:True", "max_split_size_mb:128", "roundup_power2_divisions:8", "garbage_collection_threshold:0.8",
)  # fmt: skip
#: With more events than this, trying other settings would take longer than the trace.
MOST_EVENTS = 500_000


def figures(trace: Trace, found: Simulation) -> Iterator[Figure]:
    """Reserved memory, its fragmentation, and nvidia-smi's figure where the GPU is known."""
    peak, at = found.peak_reserved, found.peak_reserved_at
    until = _until(found)
    yield Figure(
        "reserved", f"Reserved{until}", peak, "bytes", "simulated",
        f"{len(found.segments)} segments at the end; torch.cuda.max_memory_reserved()",
    )  # fmt: skip
    if at >= 0:
        yield Figure(
            "fragmentation", "Fragmentation", round(found.fragmentation(at), 4), "share", "simulated",
            "at the reserved peak: 1 − largest free block / all free bytes",
        )  # fmt: skip
    context = trace.device.context
    if context is not None:
        low, median, high = context
        yield Figure(
            "driver", f"nvidia-smi{until}", peak + median, "bytes", "calibrated",
            f"reserved + CUDA context; the context is {low:,} to {high:,} bytes on this GPU",
        )  # fmt: skip
        if trace.device.memory is not None and moved_in(trace):
            loaded = found.reserved[moved_in(trace) - 1]
            yield Figure(
                "driver_loaded", "nvidia-smi once loaded", loaded + low, "bytes", "calibrated",
                f"reserved for parameters, buffers and inputs, {loaded:,} bytes, and the smallest CUDA context measured, {low:,}: kernels "
                "are loaded into it when they first run",
            )  # fmt: skip
    memory = trace.device.memory
    if memory is not None and not until:
        left = memory - peak - trace.device.context_size
        yield Figure("headroom", "Left on the GPU", left, "bytes", "calibrated", "its memory − reserved − CUDA context")


def _until(found: Simulation) -> str:
    return ", until memory ran out" if found.out_of_memory is not None else ""


def levels(trace: Trace, found: Simulation) -> Table:
    """The same moment as PyTorch's counters and nvidia-smi tell it."""
    tensors = ("tensors", trace.peak, f"each rounded up to {trace.device.rounding} B", "traced")
    rows: list[Row] = [
        *([tensors] if found.out_of_memory is None else []),
        ("allocated", found.peak_allocated, "the blocks they got: torch.cuda.max_memory_allocated()", "simulated"),
        ("reserved", found.peak_reserved, "segments that hold them: torch.cuda.max_memory_reserved()", "simulated"),
    ]
    context = trace.device.context
    if context is not None:
        low, median, high = context
        rows.append(
            ("CUDA context", median, f"outside PyTorch, {low >> 20:,} to {high >> 20:,} MiB measured", "calibrated")
        )
        rows.append(("nvidia-smi", found.peak_reserved + median, "reserved + context", "calibrated"))
    if trace.device.memory is not None:
        rows.append(("GPU", trace.device.memory, "all of it, as torch sees it", "calibrated"))
    columns = (
        Column("level", "Level"),
        Column("bytes", "Bytes", "bytes"),
        Column("what", "What it is"),
        Column("basis", "Basis"),
    )
    return Table("levels", f"Allocated, reserved, nvidia-smi{_until(found)}", columns, tuple(rows), "simulated")


def settings(trace: Trace, found: Simulation) -> Table:
    """The step under other settings of the allocator."""
    limited = trace.device.memory is not None
    rows: list[Row] = [_row(found.conf.text or "(default)", found, found)]
    notes: tuple[str, ...] = ()
    for text in TRIED:
        conf = alloc_conf(text)
        if conf == found.conf or (conf.garbage_collection_threshold and not limited):
            continue
        if conf.garbage_collection_threshold:
            conf = replace(conf, memory_fraction=1.0)
            notes = (
                "garbage collection: only where torch.cuda.set_per_process_memory_fraction was called; here with 1.0",
            )
        rows.append(_row(text or "(default)", trace.simulate(conf), found))
    columns = (
        Column("setting", "Setting"), Column("reserved", "Reserved", "bytes"), Column("change", "Change", "bytes"),
        Column("fragmentation", "Fragmentation", "share"), Column("inactive_split", "Cannot be returned", "bytes", detail=True),
        Column("retries", "Retries", "count", detail=True), Column("dies", "Runs out"),
    )  # fmt: skip
    return Table("alloc_conf", "Allocator settings", columns, tuple(rows), "simulated", None, notes)


def _row(setting: str, tried: Simulation, given: Simulation) -> Row:
    at = tried.peak_reserved_at
    fragmentation = round(tried.fragmentation(at), 4)
    split = tried.inactive_split[at] if at >= 0 else 0
    dies = "yes" if tried.out_of_memory else "no"
    return (
        setting,
        tried.peak_reserved,
        tried.peak_reserved - given.peak_reserved,
        fragmentation,
        split,
        tried.retries,
        dies,
    )


def death(trace: Trace, died: OutOfMemory) -> Iterator[Figure]:
    """Where the step runs out of memory, and what it would take."""
    request = trace.requests[died.request]
    block = blocks_of(trace)[request.block]
    op = trace.ops[block.op] if block.op is not None else None
    where = ", ".join(part for part in (op.phase, op.module, op.name, op.line) if part) if op is not None else "start"
    yield Figure(
        "dies", "Runs out of memory at", where, "text", "simulated", f"a {block.kind} of {block.nbytes:,} bytes"
    )
    needed = simulated(trace, alloc_conf(trace.alloc_conf)).peak_reserved
    yield Figure("reserved_needed", "Reserved if memory had no end", needed, "bytes", "simulated")


def message(trace: Trace, died: OutOfMemory, conf: AllocConf) -> str:
    """PyTorch's words for it."""
    assert trace.device.memory is not None
    return explained(died, trace.device.memory, trace.device.context_size, conf, trace.device.torch)
