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
    found = simulate(trace.requests, CachingAllocator(conf, DeviceMemory(total, context)))
    died = found.out_of_memory
    if died is not None and died.request < (started := moved_in(trace)):
        assert total is not None
        needed = simulate(trace.requests[:started], CachingAllocator(conf)).peak_reserved
        beside = f" beside a CUDA context of {format_bytes(context)}" if context else ""
        raise GraphmemError(
            f"{format_bytes(total)} do not hold the model itself: parameters, buffers and inputs are {format_bytes(trace.start)}, "
            f"for which PyTorch reserves {format_bytes(needed)}{beside}; take a larger GPU or a smaller dtype"
        )
    return found


def requests_of(trace: Trace) -> list[Request]:
    """The events of a trace as the allocator sees them; `blocks_of` has what they ask for.

    What is there before the step came as ``module.to(device)`` moves it.
    """
    found: list[Request] = []
    started = [event.block for event in trace.events if event.op is None and event.alloc]
    flattened, blocks = _flattened(trace), blocks_of(trace)
    flat = {block for weights in flattened.values() for block in weights}
    ends = {weights[-1]: buffer for buffer, weights in flattened.items()}
    for block in _as_moved(started, trace.blocks, trace.modules):
        found.append(Request("alloc", block, blocks[block].nbytes))
        if block in ends:
            found.append(Request("alloc", ends[block], blocks[ends[block]].nbytes))
            found += [Request("free", weight) for weight in flattened[ends[block]]]
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
            found.append(Request("alloc", event.block, blocks[event.block].nbytes, blocks[event.block].stream))
        elif event.block not in flat:
            found.append(Request("free", event.block))
    if next_emptied >= 0:
        found += [Request("empty_cache"), *(Request("empty_cache") for at in emptied if at >= 0)]
    return found


def moved_in(trace: Trace) -> int:
    """How many of the first requests belong to what is there before the step."""
    later = sum(event.op is not None for event in trace.events)
    flat = {block for weights in _flattened(trace).values() for block in weights}
    later -= sum(event.op is not None and not event.alloc and event.block in flat for event in trace.events)
    return sum(request.action != "empty_cache" for request in trace.requests) - later


def blocks_of(trace: Trace) -> tuple[Block, ...]:
    """What the requests' numbers mean: the blocks of the trace, then the buffers that cuDNN copies recurrent weights into."""
    found = list(trace.blocks)
    for weights in _flattened(trace).values():
        first = trace.blocks[weights[0]]
        nbytes = sum(trace.blocks[block].nbytes for block in weights)
        name = f"{first.module} (one buffer for cuDNN)".strip()
        found.append(Block(nbytes, "parameter", None, first.module, (), first.dtype, name))
    return tuple(found)


#: Modules whose ``_apply`` ends with ``flatten_parameters`` (torch/nn/modules/rnn.py), and the dtypes cuDNN takes
#: (``torch.backends.cudnn.is_acceptable``).
_RECURRENT, _CUDNN_DTYPES = ("LSTM", "GRU", "RNN"), ("float16", "float32", "float64")


def _flattened(trace: Trace) -> dict[int, list[int]]:
    """Buffer → the weights that are copied into it and freed when a recurrent module is moved. Buffers are numbered after the blocks."""
    weights: dict[str, list[int]] = {}
    for event in trace.events:
        if event.op is not None:
            break
        block = trace.blocks[event.block]
        recurrent = trace.modules.get(block.module) in _RECURRENT and block.dtype in _CUDNN_DTYPES
        if event.alloc and block.kind == "parameter" and recurrent:
            weights.setdefault(block.module, []).append(event.block)
    return {len(trace.blocks) + number: found for number, found in enumerate(weights.values())}


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
