"""A history's requests served from nothing under other settings of the allocator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from graphmem.snapshots.snapshot import GROWS, RELEASES, Entry, Segment
from graphmem.timeline.allocator.caching import CachingAllocator
from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.simulate import Request, Simulation, simulate


def requests_of(start: Sequence[Segment], history: Sequence[Entry]) -> Iterator[Request]:
    """What was there at the start is asked for first, by address; then the history, with ``empty_cache`` where it was called."""
    numbers = count()
    live: dict[int, int] = {}
    for segment in start:
        for block in segment.used:
            live[block.address] = number = next(numbers)
            yield Request("alloc", number, block.requested, segment.stream)
            if block.waiting:
                yield Request("free_requested", number)
    emptied = set(_emptied(start, history))
    for index, entry in enumerate(history):
        if index in emptied:
            yield Request("empty_cache")
        elif entry.action == "alloc":
            live[entry.address] = number = next(numbers)
            yield Request("alloc", number, entry.size, entry.stream)
        elif entry.action == "free_requested":
            yield Request("free_requested", live[entry.address])
        elif entry.action == "free_completed":
            yield Request("free_completed", live.pop(entry.address))


def _emptied(start: Sequence[Segment], history: Sequence[Entry]) -> Iterator[int]:
    """Where runs of released segments begin that the program asked for.

    The allocator itself releases cached segments, within a request, when the device has no more. A history does not say which it was,
    but the device has at least what was reserved at the highest point: a request that would not have gone beyond that needed no release.
    """
    reserved = highest = sum(segment.size for segment in start)
    runs: list[tuple[int, int, int]] = []
    begin, before = -1, 0
    for index, entry in enumerate(history):
        if entry.action in RELEASES:
            if begin < 0:
                begin, before = index, reserved
            reserved -= entry.size
            continue
        if begin >= 0:
            runs.append((begin, before, entry.size if entry.action in GROWS else 0))
            begin = -1
        reserved += entry.size if entry.action in GROWS else 0
        highest = max(highest, reserved)
    if begin >= 0:
        runs.append((begin, before, 0))
    for begin, before, wanted in runs:
        if not wanted or before + wanted <= highest:
            yield begin


def under(conf: AllocConf, start: Sequence[Segment], history: Sequence[Entry]) -> Simulation:
    """The simulation under ``conf`` on a device without limit."""
    return simulate(requests_of(start, history), CachingAllocator(conf))
