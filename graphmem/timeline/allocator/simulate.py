"""A sequence of requests through the allocator: what is reserved after each, where each block went, and the one that died."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from graphmem.timeline.allocator.blocks import Block
from graphmem.timeline.allocator.caching import CachingAllocator, OutOfMemoryError
from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.driver import SegmentEvent

#: ``free_requested`` and ``free_completed`` are the two halves of a ``free`` whose block another stream still uses.
Action = Literal["alloc", "free", "free_requested", "free_completed", "empty_cache"]


class Request(NamedTuple):
    """One thing asked of the allocator. ``block`` tells blocks apart: an index or an address, of a live block unique."""

    action: Action
    block: int = -1
    #: What is asked for; of an allocation only.
    nbytes: int = 0
    stream: int = 0


class BlockState(NamedTuple):
    """A part of a segment. ``block`` is the request's; -1: free."""

    address: int
    size: int
    requested: int
    block: int
    state: Literal["active_allocated", "active_pending_free", "inactive"]


class SegmentState(NamedTuple):
    """What the device gave at once, or a stretch of mapped pages of an expandable segment; its blocks tile it."""

    address: int
    size: int
    stream: int
    small: bool
    expandable: bool
    blocks: tuple[BlockState, ...]


@dataclass(frozen=True)
class OutOfMemory:
    """The request that could not be served. Bytes; ``tried`` is what was asked of the device, ``request`` its index."""

    request: int
    nbytes: int
    tried: int
    allocated: int
    reserved: int


@dataclass(frozen=True, repr=False)
class Simulation:
    """What the allocator did. The columns have one entry a request, in bytes, after it was served."""

    conf: AllocConf
    allocated: array[int] = field(default_factory=lambda: array("q"))
    active: array[int] = field(default_factory=lambda: array("q"))
    reserved: array[int] = field(default_factory=lambda: array("q"))
    #: Free, but in segments that are partly in use, so that they cannot be given back; without expandable segments.
    inactive_split: array[int] = field(default_factory=lambda: array("q"))
    #: The largest free block.
    largest_free: array[int] = field(default_factory=lambda: array("q"))
    #: Address of the block that each ``alloc`` got; 0 for other requests.
    addresses: array[int] = field(default_factory=lambda: array("q"))
    #: (index of the request that caused it, what happened to the segment).
    segment_events: list[tuple[int, SegmentEvent]] = field(default_factory=list)
    segments: tuple[SegmentState, ...] = ()
    #: Bytes reserved before the first request.
    start_reserved: int = 0
    retries: int = 0
    out_of_memory: OutOfMemory | None = None

    @property
    def peak_reserved(self) -> int:
        """``torch.cuda.max_memory_reserved``, of segments cached in between too."""
        return max(self.start_reserved, max(self.reserved, default=0))

    @property
    def peak_reserved_at(self) -> int:
        """Index of the first request after which most is reserved; -1: before the first."""
        peak = self.peak_reserved
        return -1 if peak == self.start_reserved else self.reserved.index(peak)

    @property
    def peak_allocated(self) -> int:
        """``torch.cuda.max_memory_allocated``."""
        return max(self.allocated, default=0)

    def fragmentation(self, at: int) -> float:
        """1 − largest free block / all free bytes, after request ``at``: 0 where the free memory is in one piece, or before the first."""
        if at < 0:
            return 0.0
        free = self.reserved[at] - self.active[at]
        return 1 - self.largest_free[at] / free if free else 0.0


def simulate(
    requests: Iterable[Request], allocator: CachingAllocator, live: dict[int, Block] | None = None
) -> Simulation:
    """Serve requests one by one, up to the one that finds no memory.

    ``live``: blocks that are in use at the start, by the number requests call them by; kept up to date.
    """
    found = Simulation(allocator.conf, start_reserved=allocator.reserved)
    live = {} if live is None else live
    died: OutOfMemory | None = None
    index = 0
    heard = allocator.on_segment

    def on_segment(event: SegmentEvent) -> None:
        found.segment_events.append((index, event))
        heard(event)

    allocator.on_segment = on_segment
    columns = (found.allocated, found.active, found.reserved, found.inactive_split, found.largest_free)
    allocated, active, reserved, inactive_split, largest_free = (column.append for column in columns)
    address = found.addresses.append
    allocate, release = allocator.allocate, allocator.free
    for action, block, nbytes, stream in requests:
        placed = 0
        if action == "alloc":
            try:
                live[block] = got = allocate(nbytes, stream)
            except OutOfMemoryError as error:
                died = OutOfMemory(index, nbytes, error.size, allocator.allocated, allocator.reserved)
                break
            placed = got.address
        elif action == "free":
            release(live.pop(block))
        elif action == "free_requested":
            release(live[block], in_use_elsewhere=True)
        elif action == "free_completed":
            waiting = live.pop(block)
            if waiting.waiting:  # else it was given back when memory ran out
                allocator.release(waiting)
        else:
            allocator.empty_cache()
        allocated(allocator.allocated)
        active(allocator.active)
        reserved(allocator.reserved)
        inactive_split(allocator.inactive_split)
        largest_free(allocator.largest_free)
        address(placed)
        index += 1
    allocator.on_segment = heard
    numbers = {got.address: number for number, got in live.items()}
    return Simulation(
        found.conf, *columns, found.addresses, found.segment_events, segments_of(allocator, numbers), found.start_reserved,
        allocator.retries, died,
    )  # fmt: skip


def segments_of(allocator: CachingAllocator, numbers: dict[int, int]) -> tuple[SegmentState, ...]:
    """The segments as they stand, by address. ``numbers``: which block is at an address."""
    found: list[SegmentState] = []
    parts: list[Block] = []

    def close() -> None:
        if parts:
            blocks = tuple(_state(part, numbers) for part in parts)
            head = parts[0]
            size = sum(part.size for part in parts)
            found.append(SegmentState(head.address, size, head.pool.stream, head.pool.small, head.expandable, blocks))
            parts.clear()

    for block in allocator.blocks():
        if parts and parts[-1].next is not block:
            close()
        parts.append(block)
    close()
    return tuple(found)


def _state(block: Block, numbers: dict[int, int]) -> BlockState:
    state: Literal["active_allocated", "active_pending_free", "inactive"] = (
        "active_allocated" if block.allocated else "active_pending_free" if block.waiting else "inactive"
    )
    number = -1 if block.free else numbers.get(block.address, -1)
    return BlockState(block.address, block.size, 0 if block.free else block.requested, number, state)
