"""What the caching allocator reserves for a traced step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from graphmem.errors import GraphmemError
from graphmem.timeline.allocator.caching import CachingAllocator
from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.driver import DeviceMemory
from graphmem.timeline.allocator.simulate import Request, Simulation, simulate
from graphmem.timeline.events import Block
from graphmem.units import format_bytes

if TYPE_CHECKING:
    from graphmem.tracing.trace import Trace


def simulated(trace: Trace, conf: AllocConf, total: int | None = None, context: int = 0) -> Simulation:
    """Serve the events of a trace from an empty allocator. ``total``: bytes of the device, of which ``context`` are CUDA's own.

    Raises:
        GraphmemError: not even what is there before the step fits.
    """
    requests = requests_of(trace)
    found = simulate(requests, CachingAllocator(conf, DeviceMemory(total, context)))
    died = found.out_of_memory
    started = sum(event.op is None and event.alloc for event in trace.events)
    if died is not None and died.request < started:
        assert total is not None
        needed = simulate(requests[:started], CachingAllocator(conf)).peak_reserved
        beside = f" beside a CUDA context of {format_bytes(context)}" if context else ""
        raise GraphmemError(
            f"{format_bytes(total)} do not hold the model itself: parameters, buffers and inputs are {format_bytes(trace.start)}, "
            f"for which PyTorch reserves {format_bytes(needed)}{beside}; take a larger GPU or a smaller dtype"
        )
    return found


def requests_of(trace: Trace) -> list[Request]:
    """The events of a trace as the allocator sees them. What is there before the step came as ``module.to(device)`` moves it."""
    found: list[Request] = []
    started = [event.block for event in trace.events if event.op is None and event.alloc]
    for block in _as_moved(started, trace.blocks, trace.modules):
        found.append(Request("alloc", block, trace.blocks[block].nbytes))
    emptied = iter([*trace.cache_emptied, -1])
    next_emptied = next(emptied)
    first = len(started)
    for index, event in enumerate(trace.events):
        while index == next_emptied:
            found.append(Request("empty_cache"))
            next_emptied = next(emptied)
        if index < first:
            continue
        if event.alloc:
            found.append(Request("alloc", event.block, trace.blocks[event.block].nbytes))
        else:
            found.append(Request("free", event.block))
    if next_emptied >= 0:
        found += [Request("empty_cache"), *(Request("empty_cache") for at in emptied if at >= 0)]
    return found


def _as_moved(started: Sequence[int], blocks: Sequence[Block], modules: Mapping[str, str]) -> list[int]:
    """``Module._apply`` goes through children first, then a module's own parameters, then its buffers; inputs follow."""
    order: dict[str, int] = {}
    children: dict[str, list[str]] = {}
    for path in modules:
        if path:
            children.setdefault(path.rpartition(".")[0], []).append(path)

    def visit(path: str) -> None:
        for child in children.get(path, ()):
            visit(child)
        order[path] = len(order)

    visit("")

    def place(position: int) -> tuple[int, int, int, int]:
        block = blocks[started[position]]
        if block.kind not in ("parameter", "buffer"):
            return 1, 0, 0, position
        return 0, order.get(block.module, len(order)), int(block.kind == "buffer"), position

    return [started[position] for position in sorted(range(len(started)), key=place)]
