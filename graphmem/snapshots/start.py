"""What was there before the history began: the end state, with every event undone, newest first.

A history lists bytes asked for, not block sizes. The size of a block that is gone by the end follows from its surroundings:
in the small pool and in expandable segments the allocator splits off all it does not need; in the large pool it leaves up to
1 MiB unsplit, and no free block is that small. What still is not certain is settled by what happens later: an allocation takes
the head of a free block, so one that begins further on shows that the block before was larger.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from graphmem.snapshots.snapshot import DeviceSnapshot, Entry, Segment, UsedBlock
from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.sizes import SMALL_SEGMENT, SMALL_SIZE, round_size


@dataclass(frozen=True)
class Start:
    """The segments before the first event. ``contradiction``: an event that the end state cannot follow from, in words."""

    segments: tuple[Segment, ...]
    contradiction: str = ""
    #: Block size of each allocation, by its place in the history, as far as the end and the rule for splitting tell.
    sizes: Mapping[int, int] = field(default_factory=dict)


def start_of(snapshot: DeviceSnapshot, conf: AllocConf) -> Start:
    """The state before ``snapshot.history``."""
    undoing = _Undoing(snapshot, conf)
    try:
        for index in range(len(snapshot.history) - 1, -1, -1):
            undoing.undo(index, snapshot.history[index])
        segments = undoing.segments()
    except _Contradiction as error:
        return Start((), str(error))
    return Start(_enlarged(segments, snapshot.history), "", undoing.sizes)


class _Contradiction(Exception):
    pass


class _Undoing:
    def __init__(self, snapshot: DeviceSnapshot, conf: AllocConf) -> None:
        self._conf = conf
        self.sizes: dict[int, int] = {}
        self._segments = {s.address: replace(s, used=()) for s in snapshot.segments if not s.expandable}
        self._starts = sorted(self._segments)
        #: Mapped stretches by (small, stream), as address → end.
        self._mapped: dict[tuple[bool, int], dict[int, int]] = {}
        for s in snapshot.segments:
            if s.expandable:
                self._mapped.setdefault((s.small, s.stream), {})[s.address] = s.address + s.size
        self._used = {block.address: block for s in snapshot.segments for block in s.used}
        self._addresses = sorted(self._used)

    def undo(self, index: int, entry: Entry) -> None:
        action, address, size, stream = entry[:4]
        if action == "alloc":
            block = self._used.pop(address, None)
            if block is None:
                raise _Contradiction(
                    f"the block of {size:,} bytes at {address:#x} is allocated and never freed, yet not there"
                )
            self.sizes[index] = block.size
            del self._addresses[bisect_left(self._addresses, address)]
        elif action == "free_completed":
            if address in self._used:
                raise _Contradiction(f"the block at {address:#x} is freed and still there")
            self._used[address] = UsedBlock(address, self._size(address, size), size, waiting=True)
            insort(self._addresses, address)
        elif action == "free_requested":
            if address not in self._used:
                raise _Contradiction(f"the block at {address:#x} is freed and not there")
            self._used[address] = self._used[address]._replace(waiting=False)
        elif action == "segment_alloc":
            if self._segments.pop(address, None) is None:
                raise _Contradiction(f"the segment at {address:#x} is allocated and never freed, yet not there")
            del self._starts[bisect_left(self._starts, address)]
        elif action == "segment_free":
            # Only the small pool has segments of 2 MiB.
            self._segments[address] = Segment(address, size, stream, size == SMALL_SEGMENT, False, ())
            insort(self._starts, address)
        elif action in ("segment_map", "segment_unmap"):
            self._remap(action == "segment_unmap", address, size, stream)

    def _remap(self, present: bool, address: int, size: int, stream: int) -> None:
        key = next(
            (
                key
                for key, ranges in self._mapped.items()
                if any(begin <= address <= end for begin, end in ranges.items())
            ),
            (size % self._conf.large_segment_size != 0, stream),
        )
        ranges = sorted(self._mapped.get(key, {}).items())
        end = address + size
        if present:
            ranges = sorted([*ranges, (address, end)])
            merged: list[tuple[int, int]] = []
            for begin, stop in ranges:
                if merged and merged[-1][1] >= begin:
                    merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
                else:
                    merged.append((begin, stop))
        else:
            merged = [
                part
                for begin, stop in ranges
                for part in ((begin, min(stop, address)), (max(begin, end), stop))
                if part[0] < part[1]
            ]
        self._mapped[key] = dict(merged)

    def _place(self, address: int) -> tuple[int, bool, bool]:
        """End of the segment an address lies in, whether small, whether expandable."""
        before = bisect_right(self._starts, address) - 1
        found = self._segments[self._starts[before]] if before >= 0 else None
        if found is not None and address < found.address + found.size:
            return found.address + found.size, found.small, False
        for (small, _), ranges in self._mapped.items():
            for begin, end in ranges.items():
                if begin <= address < end:
                    return end, small, True
        raise _Contradiction(f"the block at {address:#x} lies in no segment")

    def _size(self, address: int, requested: int) -> int:
        """The size of a block that was freed here."""
        end, small, expandable = self._place(address)
        after = bisect_right(self._addresses, address)
        if after < len(self._addresses):
            end = min(end, self._addresses[after])
        size = round_size(requested, self._conf)
        if size > end - address:
            raise _Contradiction(f"the block of {requested:,} bytes at {address:#x} overlaps the next one")
        limit = self._conf.max_split_size
        unsplit = limit is not None and size >= limit
        if not small and not expandable and (unsplit or end - address - size <= SMALL_SIZE):
            return end - address
        return size

    def segments(self) -> tuple[Segment, ...]:
        found = list(self._segments.values())
        for (small, stream), ranges in self._mapped.items():
            found += [Segment(begin, end - begin, stream, small, True, ()) for begin, end in ranges.items()]
        found.sort(key=lambda segment: segment.address)
        return tuple(replace(segment, used=self._within(segment)) for segment in found)

    def _within(self, segment: Segment) -> tuple[UsedBlock, ...]:
        first = bisect_left(self._addresses, segment.address)
        last = bisect_left(self._addresses, segment.address + segment.size)
        used = [self._used[address] for address in self._addresses[first:last]]
        if segment.small or segment.expandable:
            return tuple(used)
        # No free block of the large pool is that small: what is left behind a block belongs to it.
        ends = [block.address for block in used[1:]] + [segment.address + segment.size]
        return tuple(
            block._replace(size=end - block.address) if end - block.address - block.size <= SMALL_SIZE else block
            for block, end in zip(used, ends, strict=False)
        )


def _enlarged(segments: tuple[Segment, ...], history: tuple[Entry, ...]) -> tuple[Segment, ...]:
    """Start blocks grown to where a later allocation shows that they must have ended."""
    ends = {block.address: block.address + block.size for segment in segments for block in segment.used}
    originals, grown = set(ends), dict[int, int]()
    addresses = sorted(ends)
    bounds = sorted(segment.address for segment in segments)
    for entry in history:
        if entry.action == "segment_alloc":
            insort(bounds, entry.address)
        elif entry.action == "free_completed" and entry.address in ends:
            del ends[entry.address]
            del addresses[bisect_left(addresses, entry.address)]
            originals.discard(entry.address)
        elif entry.action == "alloc":
            place = bisect_left(addresses, entry.address)
            before = addresses[place - 1] if place else -1
            begin = bounds[bisect_right(bounds, entry.address) - 1] if bounds else 0
            if begin <= before and before in originals and ends[before] < entry.address:
                gap = entry.address - ends[before]
                if gap <= SMALL_SIZE:
                    grown[before] = ends[before] = entry.address
            addresses.insert(place, entry.address)
            ends[entry.address] = entry.address
    if not grown:
        return segments

    def fixed(block: UsedBlock) -> UsedBlock:
        return block._replace(size=grown.get(block.address, block.address + block.size) - block.address)

    return tuple(replace(segment, used=tuple(map(fixed, segment.used))) for segment in segments)
