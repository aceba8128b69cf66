"""A snapshot's history served again by the simulated allocator: it must choose every address that PyTorch's did.

The device's part is taken from the history: where segments lie, and when everything cached was given back (by
``empty_cache``, or because the device had no more; in both cases the history shows a run of released segments).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

from graphmem.snapshots.snapshot import GROWS, RELEASES, DeviceSnapshot, Entry, Segment
from graphmem.timeline.allocator.blocks import Block
from graphmem.timeline.allocator.caching import CachingAllocator
from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.driver import SegmentEvent
from graphmem.timeline.allocator.simulate import Request, Simulation, simulate

#: Address space of an expandable segment whose end is not known; where a segment lies that PyTorch did not take.
_SPACE, _ELSEWHERE = 1 << 44, 1 << 52


@dataclass(frozen=True)
class Divergence:
    """The first entry of the history that the simulated allocator does otherwise."""

    entry: int
    what: str


@dataclass(frozen=True)
class Replay:
    """The simulation, up to the first divergence if there is one. ``entries``: the entry of the history behind each request."""

    simulation: Simulation
    entries: tuple[int, ...]
    divergence: Divergence | None
    #: Most bytes reserved by the history's own count.
    peak_reserved: int


class _Recorded:
    """The device as the history has it; ``surprised``: what was asked of it that PyTorch did not ask."""

    total: int | None = None

    def __init__(self) -> None:
        self.grown: list[Entry] = []
        self.surprised = ""
        #: What the allocator has given back since the history last did, and how much of that comes before it gets new memory.
        self.released: list[SegmentEvent] = []
        self.withheld = 0

    def malloc(self, size: int) -> int | None:
        if len(self.released) < self.withheld:
            return None
        entry = self.grown.pop(0) if self.grown else None
        if entry is None:
            self.surprised = f"needs a segment of {size:,} bytes where PyTorch had a cached block"
            return _ELSEWHERE
        if entry.size != size:
            self.surprised = f"needs a segment of {size:,} bytes where PyTorch took one of {entry.size:,}"
        return entry.address

    def map(self, address: int, size: int) -> bool:
        if len(self.released) < self.withheld:
            return False
        entry = self.grown.pop(0) if self.grown else None
        if entry is None:
            self.surprised = f"maps {size:,} bytes where PyTorch had a cached block"
        elif (entry.address, entry.size) != (address, size):
            self.surprised = (
                f"maps {size:,} bytes at {address:#x} where PyTorch mapped {entry.size:,} at {entry.address:#x}"
            )
        return True

    def unmap(self, address: int, size: int) -> None:
        return None

    def free(self, address: int, size: int) -> None:
        return None

    def reserve(self, pool_page: int) -> tuple[int, int]:
        return (self.grown[0].address if self.grown else _ELSEWHERE), _SPACE


def replay(snapshot: DeviceSnapshot, start: tuple[Segment, ...], conf: AllocConf) -> Replay:
    """Serve the history from its start state."""
    driver = _Recorded()
    allocator = CachingAllocator(conf, driver)
    live = adopt(allocator, start, snapshot.history)
    entries: list[int] = []
    told: list[Divergence] = []
    requests = _followed(snapshot.history, allocator, driver, live, entries, told)
    simulation = simulate(requests, allocator, live)
    divergence = told[0] if told else None
    if divergence is None and allocator.reserved != snapshot.reserved:
        what = f"{allocator.reserved:,} bytes are reserved at the end where PyTorch has {snapshot.reserved:,}"
        divergence = Divergence(len(snapshot.history), what)
    return Replay(simulation, tuple(entries), divergence, _peak_reserved(snapshot))


def _peak_reserved(snapshot: DeviceSnapshot) -> int:
    reserved = peak = snapshot.reserved
    for entry in reversed(snapshot.history):
        if entry.action in GROWS:
            reserved -= entry.size
        elif entry.action in RELEASES:
            reserved += entry.size
        peak = max(peak, reserved)
    return peak


def adopt(
    allocator: CachingAllocator, segments: tuple[Segment, ...], history: tuple[Entry, ...] = ()
) -> dict[int, Block]:
    """Give an allocator its start state; the blocks in use by address. ``history`` tells where expandable segments begin."""
    following: dict[tuple[bool, int], int] = {}
    space: dict[int, int] = {}
    for segment in sorted(segments, key=lambda s: -s.address):
        if segment.expandable:
            key, end = (segment.small, segment.stream), segment.address + segment.size
            space[segment.address] = following.get(key, end + _SPACE) - end
            following[key] = segment.address
    begins = _begins(segments, history)
    for s in sorted(segments, key=lambda s: s.address):
        used = [(block.address, block.size, block.requested) for block in s.used]
        allocator.adopt(s.address, s.size, s.stream, s.small, used, space.get(s.address, 0), begins.get(s.address, 0))
    live = {block.address: block for block in allocator.blocks() if block.allocated}
    for segment in segments:
        for block in segment.used:
            if block.waiting:
                allocator.free(live[block.address], in_use_elsewhere=True)
    return live


def _begins(segments: tuple[Segment, ...], history: tuple[Entry, ...]) -> dict[int, int]:
    """Address space before the first mapped stretch of each pool, bytes by that stretch's address: pages are mapped there later."""
    found: dict[int, int] = {}
    for small in (False, True):
        for stream in {segment.stream for segment in segments}:
            first = min(
                (s.address for s in segments if s.expandable and (s.small, s.stream) == (small, stream)), default=None
            )
            others = [s.address for s in segments if (s.small, s.stream) != (small, stream)]
            if first is None:
                continue
            mapped = [
                e.address for e in history if e.action == "segment_map" and e.stream == stream and e.address < first
            ]
            near = [address for address in mapped if not any(address < other < first for other in others)]
            if near:
                found[first] = first - min(near)
    return found


def _followed(
    history: tuple[Entry, ...], allocator: CachingAllocator, driver: _Recorded, live: dict[int, Block],
    entries: list[int], told: list[Divergence],
) -> Iterator[Request]:  # fmt: skip
    """The history as requests, each compared with what the allocator did with it; ends at the first difference."""
    released = driver.released
    allocator.on_segment = lambda event: released.append(event) if event[0] in RELEASES else None
    index, run = 0, list[SegmentEvent]()
    while index < len(history):
        entry, difference = history[index], ""
        if entry.action in GROWS:
            driver.grown.append(entry)
        elif entry.action == "alloc":
            entries.append(index)
            yield Request("alloc", entry.address, entry.size, entry.stream)
            difference = driver.surprised or _misplaced(entry, live[entry.address], driver.grown)
            if run:
                difference = difference or _misreleased(run, released)
                driver.withheld, run = 0, []
        elif entry.action in RELEASES:
            found = list(takewhile(lambda e: e.action in RELEASES, islice(history, index, None)))
            run = [(e.action, e.address, e.size, e.stream) for e in found]
            released.clear()
            after = history[index + len(run) : index + len(run) + 2]
            within = [e.action for e in after[1:]] == ["alloc"] and after[0].action in GROWS
            if within and allocator.conf.garbage_collection_threshold:
                # What is collected depends on the device's memory, and on how often blocks were looked at before the history.
                if not all(allocator.give_back(address) for _, address, _, _ in run):
                    difference = "has something in a segment that PyTorch gave back"
                run = []
            elif within and allocator.conf.max_split_size is not None:
                # Given back within the request that follows, which may need only a part of the cache.
                driver.withheld = len(run)
            else:
                entries.append(index)
                yield Request("empty_cache")
                difference = _misreleased(run, released)
                run = []
            index += len(found) - 1
        elif entry.action in ("free_requested", "free_completed"):
            entries.append(index)
            if entry.address not in live:
                difference = "frees a block that is not there"
            elif entry.action == "free_requested" and _completes(history[index + 1 : index + 2], entry):
                index += 1
                yield Request("free", entry.address)
            else:
                yield Request("free_requested" if entry.action == "free_requested" else "free_completed", entry.address)
        if difference:
            told.append(Divergence(index, difference))
            return
        index += 1


def _completes(following: tuple[Entry, ...], requested: Entry) -> bool:
    return bool(following) and following[0][:2] == ("free_completed", requested.address)


def _misplaced(entry: Entry, block: Block, left: list[Entry]) -> str:
    if block.address != entry.address:
        return f"puts {entry.size:,} bytes at {block.address:#x} where PyTorch put them at {entry.address:#x}"
    return f"has a cached block where PyTorch took a segment of {left[0].size:,} bytes" if left else ""


def _misreleased(real: list[tuple[str, int, int, int]], ours: list[SegmentEvent]) -> str:
    if real == ours:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(real, ours, strict=False)) if a != b), min(len(real), len(ours)))
    return f"releases {len(ours):,} segments where PyTorch releases {len(real):,}; number {at + 1} differs"
