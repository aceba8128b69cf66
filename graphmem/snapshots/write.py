"""A traced step as a memory snapshot that PyTorch's own tools read: ``torch.cuda._memory_viz`` and pytorch.org/memory_viz.

The history begins with an empty allocator. The frames of an entry are (source line, operation), (module path, class), the phase, and
the kind of the block with its name if it has one.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.simulate import BlockState, SegmentState, Simulation
from graphmem.timeline.allocator.sizes import round_size
from graphmem.timeline.events import Op
from graphmem.timeline.reserved import blocks_of

if TYPE_CHECKING:
    from graphmem.tracing.trace import Trace

#: The page at pytorch.org/memory_viz reads this protocol.
_PROTOCOL = 4


def snapshot_bytes(trace: Trace) -> bytes:
    """The pickle of `as_snapshot`.

    Raises:
        GraphmemError: the trace is not of a CUDA device.
    """
    return pickle.dumps(as_snapshot(trace), protocol=_PROTOCOL)


def as_snapshot(trace: Trace) -> dict[str, Any]:
    """The dict that ``torch.cuda.memory._snapshot()`` would return after the step."""
    found = trace.simulation
    stacks = _Stacks(trace)
    return {
        "segments": [_segment(segment, stacks) for segment in found.segments],
        "device_traces": [_history(trace, found, stacks)],
        "allocator_settings": _settings(found.conf),
        "external_annotations": [],
    }


class _Stacks:
    """Frames of a block's allocation and of an operation."""

    def __init__(self, trace: Trace) -> None:
        self._trace, self._blocks = trace, blocks_of(trace)
        self._of_op: dict[int | None, list[dict[str, Any]]] = {None: [_frame("", 0, "before the step")]}

    def of_op(self, index: int | None) -> list[dict[str, Any]]:
        if index not in self._of_op:
            assert index is not None
            self._of_op[index] = self._frames(self._trace.ops[index])
        return self._of_op[index]

    def of_block(self, index: int) -> list[dict[str, Any]]:
        block = self._blocks[index]
        what = _frame("", 0, f"{block.kind} {block.name}".strip())
        return [*self.of_op(block.op), what] if block.op is not None else [what, *self.of_op(None)]

    def _frames(self, op: Op) -> list[dict[str, Any]]:
        file, _, line = op.line.rpartition(":")
        frames = [_frame(file, int(line or 0), op.name)]
        if op.module:
            frames.append(_frame(op.module, 0, self._trace.modules.get(op.module, "")))
        return [*frames, _frame("", 0, f"{op.phase} of step {op.step + 1}")]


def _frame(filename: str, line: int, name: str) -> dict[str, Any]:
    return {"filename": filename, "line": line, "name": name}


def _segment(segment: SegmentState, stacks: _Stacks) -> dict[str, Any]:
    used = [block for block in segment.blocks if block.state != "inactive"]
    return {
        "device": 0, "address": segment.address, "total_size": segment.size, "stream": segment.stream,
        "segment_type": "small" if segment.small else "large", "segment_pool_id": (0, 0), "is_expandable": segment.expandable,
        "allocated_size": sum(block.size for block in used if block.state == "active_allocated"),
        "active_size": sum(block.size for block in used), "requested_size": sum(block.requested for block in used),
        "frames": [], "blocks": [_block(block, stacks) for block in segment.blocks],
    }  # fmt: skip


def _block(block: BlockState, stacks: _Stacks) -> dict[str, Any]:
    return {
        "address": block.address, "size": block.size, "requested_size": block.requested, "state": block.state,
        "frames": stacks.of_block(block.block) if block.block >= 0 else [],
    }  # fmt: skip


def _history(trace: Trace, found: Simulation, stacks: _Stacks) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []

    def add(action: str, address: int, size: int, frames: list[dict[str, Any]], stream: int, key: str = "addr") -> None:
        entries.append(
            {"action": action, key: address, "size": size, "stream": stream, "time_us": len(entries), "frames": frames}
        )

    freed_by = {event.block: event.op for event in trace.events if not event.alloc}
    blocks = blocks_of(trace)
    segments = iter([*found.segment_events, None])
    segment = next(segments)
    address: dict[int, int] = {}
    for index, request in enumerate(trace.requests):
        while segment is not None and segment[0] == index:
            action, where, size, stream = segment[1]
            add(action, where, size, [], stream)
            segment = next(segments)
        died = found.out_of_memory
        if died is not None and died.request == index:
            free = max((trace.device.memory or 0) - died.reserved - trace.device.context_size, 0)
            add(
                "oom",
                free,
                round_size(request.nbytes, found.conf),
                stacks.of_block(request.block),
                request.stream,
                "device_free",
            )
            break
        if request.action == "alloc":
            address[request.block] = found.addresses[index]
            add("alloc", found.addresses[index], request.nbytes, stacks.of_block(request.block), request.stream)
        elif request.action == "free":
            where, freed = address.pop(request.block), blocks[request.block]
            for action in ("free_requested", "free_completed"):
                add(action, where, freed.nbytes, stacks.of_op(freed_by.get(request.block)), freed.stream)
    return entries


def _settings(conf: AllocConf) -> dict[str, Any]:
    return {
        "PYTORCH_CUDA_ALLOC_CONF": conf.text,
        "max_split_size": -1 if conf.max_split_size is None else conf.max_split_size,
        "garbage_collection_threshold": conf.garbage_collection_threshold,
        "expandable_segments": conf.expandable_segments,
        "pinned_num_register_threads": 1,
        "release_lock_on_cudamalloc": False,
        "pinned_use_cuda_host_register": False,
        "roundup_power2_divisions": {str(2**i): n for i, n in enumerate(conf.roundup_power2_divisions)},
    }
