"""A real memory snapshot as a Report: ``graphmem show``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from graphmem.report import Column, Figure, Report, Row, Section, Table, sum_row
from graphmem.snapshots.kinds import kind_of, place_of
from graphmem.snapshots.replay import Replay, replay
from graphmem.snapshots.snapshot import GROWS, RELEASES, DeviceSnapshot, Entry, Segment, UsedBlock
from graphmem.snapshots.start import Start, start_of
from graphmem.snapshots.what_if import under
from graphmem.timeline.allocator.conf import AllocConf, alloc_conf
from graphmem.timeline.allocator.simulate import Simulation
from graphmem.timeline.allocator.sizes import SMALL_SEGMENT
from graphmem.timeline.reserved_tables import TRIED


@dataclass(frozen=True)
class _Timeline:
    """Bytes after each entry of the history, and what is alive at the peak."""

    start: int
    allocated: list[int]
    reserved: list[int]
    #: Most reserved, at the start included.
    peak_reserved: int
    peak: int
    peak_at: int
    alive: list[UsedBlock]


def report(devices: Sequence[DeviceSnapshot], name: str, top: int, events: bool = False) -> Report:
    """What happened on each device; ``events`` adds the table of every entry."""
    sections, notes, warnings = [], [], []
    for snapshot in devices:
        conf = alloc_conf(snapshot.alloc_conf)
        start = start_of(snapshot, conf)
        label = f"device {snapshot.device}"
        section, told, warned = _section(snapshot, conf, start, "" if len(devices) == 1 else label, top, events)
        sections.append(section)
        prefix = "" if len(devices) == 1 else f"{label}: "
        notes += [prefix + note for note in told]
        warnings += [prefix + warning for warning in warned]
    count = sum(len(snapshot.history) for snapshot in devices)
    origin = f"a memory snapshot of {len(devices)} device{'s' * (len(devices) != 1)}, {count:,} events"
    return Report("show", name, origin, tuple(sections), tuple(notes), tuple(warnings))


def _section(
    snapshot: DeviceSnapshot, conf: AllocConf, start: Start, name: str, top: int, events: bool
) -> tuple[Section, list[str], list[str]]:
    notes = [f"allocator settings: {conf.text or 'the defaults'}"]
    if start.contradiction:
        warning = f"the history does not lead to the state at its end ({start.contradiction}); only that state is shown"
        return Section(name, tuple(_end_figures(snapshot)), (_segments(snapshot),)), notes, [warning]
    again = replay(snapshot, start.segments, conf)
    found = _timeline(snapshot, start, again)
    figures = [*_figures(snapshot, found), *_end_figures(snapshot), _reproduced(again, len(snapshot.history))]
    figures += [_out_of_memory(entry, index) for index, entry in enumerate(snapshot.history) if entry.action == "oom"]
    tables = [_kinds(found), _places(found, top), _segments(snapshot)]
    if snapshot.history:
        tables.append(_settings(snapshot, start, conf, found))
    if events:
        tables.append(_every_entry(snapshot, found))
    if not snapshot.history:
        notes.append(
            "no history was recorded (torch.cuda.memory._record_memory_history), so only the last state is known"
        )
    elif found.start:
        notes.append("the history begins with memory in use: it was switched on, or its ring buffer wrapped, mid-way")
    if any(segment.pool != (0, 0) for segment in snapshot.segments):
        notes.append("private pools (CUDA graphs) are replayed as ordinary memory")
    return Section(name, tuple(figures), tuple(tables)), notes, []


def _timeline(snapshot: DeviceSnapshot, start: Start, again: Replay) -> _Timeline:
    used = {block.address: block for segment in start.segments for block in segment.used}
    allocated = begin = sum(block.size for block in used.values() if not block.waiting)
    sizes = _block_sizes(snapshot, start, again, begin)
    reserved = sum(segment.size for segment in start.segments)
    column: list[int] = []
    reserved_column: list[int] = []
    peak, peak_at = allocated, -1
    for index, entry in enumerate(snapshot.history):
        if entry.action == "alloc":
            used[entry.address] = UsedBlock(entry.address, sizes[index], entry.size, False, entry.frames)
            allocated += sizes[index]
        elif entry.action == "free_requested":
            allocated -= used[entry.address].size
        elif entry.action == "free_completed":
            del used[entry.address]
        elif entry.action in GROWS:
            reserved += entry.size
        elif entry.action in RELEASES:
            reserved -= entry.size
        if allocated > peak:
            peak, peak_at = allocated, index
        column.append(allocated)
        reserved_column.append(reserved)
    alive = _alive(snapshot, start, sizes, peak_at)
    return _Timeline(begin, column, reserved_column, again.peak_reserved, peak, peak_at, alive)


def _block_sizes(snapshot: DeviceSnapshot, start: Start, again: Replay, before: int) -> dict[int, int]:
    """Block size of each allocation, by entry: as replayed, beyond a divergence as it follows from the end."""
    sizes = dict(start.sizes)
    last = again.divergence.entry if again.divergence is not None else len(snapshot.history)
    for index, allocated in zip(again.entries, again.simulation.allocated, strict=False):
        if snapshot.history[index].action == "alloc" and index < last:
            sizes[index] = allocated - before
        before = allocated
    return sizes


def _alive(snapshot: DeviceSnapshot, start: Start, sizes: dict[int, int], at: int) -> list[UsedBlock]:
    used = {block.address: block for segment in start.segments for block in segment.used if not block.waiting}
    for index, entry in enumerate(snapshot.history[: at + 1]):
        if entry.action == "alloc":
            used[entry.address] = UsedBlock(entry.address, sizes[index], entry.size, False, entry.frames)
        elif entry.action == "free_requested":
            used.pop(entry.address, None)
    return list(used.values())


def _figures(snapshot: DeviceSnapshot, found: _Timeline) -> Iterator[Figure]:
    yield Figure("peak", "Peak allocated", found.peak, "bytes", "read", "within the history")
    if snapshot.history:
        yield Figure("peak_reserved", "Peak reserved", found.peak_reserved, "bytes", "read", "within the history")
        yield Figure("start", "Allocated when the history begins", found.start, "bytes", "read")
        if found.peak_at >= 0:
            where = place_of(snapshot.history[found.peak_at].frames)
            yield Figure(
                "peak_where", "Peak at", f"event {found.peak_at}" + (f", {where}" if where else ""), "text", "read"
            )


def _end_figures(snapshot: DeviceSnapshot) -> Iterator[Figure]:
    yield Figure("allocated", "Allocated at the end", snapshot.allocated, "bytes", "read")
    yield Figure("reserved", "Reserved at the end", snapshot.reserved, "bytes", "read")
    free = [size for segment in snapshot.segments for _, size in _gaps(segment.address, segment.size, segment.used)]
    if free:
        value = round(1 - max(free) / sum(free), 4)
        yield Figure(
            "fragmentation",
            "Fragmentation at the end",
            value,
            "share",
            "read",
            "1 − largest free block / all free bytes",
        )


def _gaps(address: int, size: int, used: Sequence[UsedBlock]) -> list[tuple[int, int]]:
    """(address, bytes) of what no used block covers."""
    gaps, position = [], address
    for block in used:
        gaps.append((position, block.address - position))
        position = block.address + block.size
    return [gap for gap in [*gaps, (position, address + size - position)] if gap[1]]


def _reproduced(again: Replay, events: int) -> Figure:
    different = again.divergence
    said = (
        "yes, every address and segment"
        if different is None
        else f"up to event {different.entry:,} of {events:,}, where graphmem {different.what}"
    )
    return Figure("reproduced", "Reproduced by graphmem's allocator", said, "text", "simulated")


def _out_of_memory(entry: Entry, index: int) -> Figure:
    where = place_of(entry.frames)
    said = f"event {index}, {entry.size:,} bytes asked for" + (f", {where}" if where else "")
    return Figure(f"out_of_memory_{index}", "Ran out of memory at", said, "text", "read")


def _summed(pairs: Iterable[tuple[str, int]]) -> list[Row]:
    totals: dict[str, list[int]] = {}
    for key, nbytes in pairs:
        total = totals.setdefault(key, [0, 0])
        total[0] += 1
        total[1] += nbytes
    whole = sum(nbytes for _, nbytes in totals.values()) or 1
    return [(key, *sums, sums[1] / whole) for key, sums in sorted(totals.items(), key=lambda item: -item[1][1])]


_COLUMNS = (Column("blocks", "Blocks", "count"), Column("bytes", "Bytes", "bytes"), Column("share", "Share", "share"))


def _kinds(found: _Timeline) -> Table:
    rows = _summed((kind_of(block.frames), block.size) for block in found.alive)
    columns = (Column("kind", "Kind"), *_COLUMNS)
    notes = ("unknown: no stack was recorded, or it does not tell",) if any(row[0] == "unknown" for row in rows) else ()
    return Table("peak_kinds", "Alive at the peak", columns, tuple(rows), "read", sum_row(columns, rows), notes)


def _places(found: _Timeline, top: int) -> Table:
    rows = _summed((place_of(block.frames) or "(no stack)", block.size) for block in found.alive)
    columns = (Column("line", "Line"), *_COLUMNS)
    total = sum_row(columns, rows)
    if len(rows) > top + 1:
        rows = [*rows[:top], sum_row(columns, rows[top:], f"({len(rows) - top} others)")]
    return Table("peak_lines", "Alive at the peak, by line", columns, tuple(rows), "read", total)


def _segments(snapshot: DeviceSnapshot) -> Table:
    groups: dict[tuple[str, int], list[int]] = {}
    for segment in snapshot.segments:
        kind = "expandable" if segment.expandable else "small" if segment.small else "large"
        group = groups.setdefault((kind, segment.size), [0, 0, 0, 0])
        used = sum(block.size for block in segment.used)
        group[0] += 1
        group[1] += segment.size
        group[2] += used
        group[3] += _kept(segment) if used else 0
    rows: list[Row] = [(kind, size, *sums) for (kind, size), sums in sorted(groups.items(), key=lambda g: -g[1][1])]
    columns = (
        Column("pool", "Pool"), Column("size", "Of", "bytes"), Column("count", "Segments", "count"), Column("bytes", "Reserved", "bytes"),
        Column("active", "In use", "bytes"), Column("inactive_split", "Cannot be returned", "bytes"),
    )  # fmt: skip
    total = ("Total", None, *sum_row(columns, rows)[2:]) if rows else None
    return Table("segments", "Segments at the end", columns, tuple(rows), "read", total)


def _kept(segment: Segment) -> int:
    """Free bytes that cannot go back to the device: all of a segment in use, of an expandable one those of pages in use."""
    gaps = _gaps(segment.address, segment.size, segment.used)
    if not segment.expandable:
        return sum(size for _, size in gaps)
    page = SMALL_SEGMENT if segment.small else AllocConf().large_segment_size
    kept = 0
    for begin, size in gaps:
        first, last = -(-(begin - segment.address) // page) * page, (begin + size - segment.address) // page * page
        kept += size - max(last - first, 0)
    return kept


def _settings(snapshot: DeviceSnapshot, start: Start, conf: AllocConf, found: _Timeline) -> Table:
    recorded = found.peak_reserved
    texts = list(dict.fromkeys([conf.text, *(text for text in TRIED if "garbage" not in text)]))
    rows: list[Row] = [("(as recorded)", recorded, 0, None)]
    for text in texts:
        tried: Simulation = under(alloc_conf(text), start.segments, snapshot.history)
        at = tried.peak_reserved_at
        rows.append(
            (
                text or "(default)",
                tried.peak_reserved,
                tried.peak_reserved - recorded,
                round(tried.fragmentation(at), 4),
            )
        )
    columns = (
        Column("setting", "Setting"), Column("reserved", "Reserved", "bytes"), Column("change", "Change", "bytes"),
        Column("fragmentation", "Fragmentation", "share"),
    )  # fmt: skip
    notes = (
        ()
        if not found.start
        else ("what was there at the start is placed first; how it came to lie is not in the history",)
    )
    return Table(
        "alloc_conf",
        "The same requests from nothing on a device without end, by setting",
        columns,
        tuple(rows),
        "simulated",
        None,
        notes,
    )


def _every_entry(snapshot: DeviceSnapshot, found: _Timeline) -> Table:
    rows: list[Row] = [
        (index, entry.action, entry.size, found.allocated[index], found.reserved[index], hex(entry.address), entry.stream,
         kind_of(entry.frames), place_of(entry.frames))
        for index, entry in enumerate(snapshot.history)
    ]  # fmt: skip
    columns = (
        Column("event", "Event", "text"), Column("action", "Action"), Column("bytes", "Bytes", "bytes"), Column("allocated", "Allocated", "bytes"),
        Column("reserved", "Reserved", "bytes"), Column("address", "Address"), Column("stream", "Stream", "text"), Column("kind", "Kind"),
        Column("line", "Line"),
    )  # fmt: skip
    return Table("timeline", "Timeline", columns, tuple(rows), "read")
