"""A Trace as the run it predicts."""

from __future__ import annotations

from graphmem.measuring.measurement import Run
from graphmem.timeline.events import Op
from graphmem.timeline.reserved import blocks_of
from graphmem.timeline.reserved_tables import message
from graphmem.tracing.trace import Trace


def predicted(trace: Trace) -> Run:
    """On CUDA from an empty allocator, weights included; on the CPU from after the weights are there."""
    if trace.device.type == "cpu":
        events = [event for event in trace.events if event.op is not None]
        sizes = tuple(_signed(trace, event.block, event.alloc) for event in events)
        return Run(trace.start, sizes, tuple(_place(trace, event.op) for event in events), trace.peak)
    freed_by = {event.block: event.op for event in trace.events if not event.alloc}
    blocks = blocks_of(trace)
    requests = [request for request in trace.requests if request.action != "empty_cache"]
    sizes = tuple(blocks[r.block].nbytes if r.action == "alloc" else -blocks[r.block].nbytes for r in requests)
    places = tuple(
        _place(trace, blocks[request.block].op if request.action == "alloc" else freed_by.get(request.block))
        for request in requests
    )
    found = trace.simulation
    died = found.out_of_memory
    context = trace.device.context
    driver = None if context is None else (found.peak_reserved + context[0], found.peak_reserved + context[2])
    told = "" if died is None else message(trace, died, found.conf)
    return Run(0, sizes, places, found.peak_allocated, found.peak_reserved, driver, told)


def _signed(trace: Trace, block: int, alloc: bool) -> int:
    nbytes = trace.blocks[block].nbytes
    return nbytes if alloc else -nbytes


def _place(trace: Trace, op: int | None) -> str:
    if op is None:
        return "before the step"
    found: Op = trace.ops[op]
    return ", ".join(part for part in (found.name, found.module, found.line) if part)
