"""A history's requests served from nothing under other settings of the allocator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from graphmem.snapshots.snapshot import Entry, Segment
from graphmem.timeline.allocator.caching import CachingAllocator
from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.simulate import Request, Simulation, simulate

_RELEASES = ("segment_free", "segment_unmap")


def requests_of(start: Sequence[Segment], history: Sequence[Entry]) -> Iterator[Request]:
    """What was there at the start is asked for first, by address; then the history.

    A run of released segments is taken as ``empty_cache``: a history does not tell it from the allocator's own retry.
    """
    numbers = count()
    live: dict[int, int] = {}
    for segment in start:
        for block in segment.used:
            live[block.address] = number = next(numbers)
            yield Request("alloc", number, block.requested, segment.stream)
            if block.waiting:
                yield Request("free_requested", number)
    releasing = False
    for entry in history:
        if entry.action in _RELEASES:
            if not releasing:
                yield Request("empty_cache")
            releasing = True
            continue
        releasing = False
        if entry.action == "alloc":
            live[entry.address] = number = next(numbers)
            yield Request("alloc", number, entry.size, entry.stream)
        elif entry.action == "free_requested":
            yield Request("free_requested", live[entry.address])
        elif entry.action == "free_completed":
            yield Request("free_completed", live.pop(entry.address))


def under(conf: AllocConf, start: Sequence[Segment], history: Sequence[Entry]) -> Simulation:
    """The simulation under ``conf`` on a device without limit."""
    return simulate(requests_of(start, history), CachingAllocator(conf))
