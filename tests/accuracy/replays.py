"""Truth 4: every real snapshot's requests served again by the simulated allocator, address by address.

The distilled files hold what a snapshot pickle holds but for stacks; they take the same way through graphmem as a user's file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from graphmem.snapshots.replay import Replay, replay
from graphmem.snapshots.snapshot import DeviceSnapshot, Entry, Segment, UsedBlock
from graphmem.snapshots.start import start_of
from graphmem.timeline.allocator.conf import alloc_conf
from tests.accuracy.snapshots import SNAPSHOTS, load


@dataclass(frozen=True)
class ReplayRow:
    """One snapshot. ``segment_events``: segments taken and given back within the record; bytes."""

    file: str
    source: str
    torch: str
    events: int
    allocations: int
    segment_events: int
    peak_reserved: int
    difference: str
    replay: Replay | None = None


def files() -> list[dict[str, Any]]:
    """The rows of the snapshots' index that have a file."""
    return [row for row in json.loads((SNAPSHOTS / "index.json").read_text()) if row["file"]]


def device_of(data: dict[str, Any]) -> DeviceSnapshot:
    """The distilled data as what `graphmem.snapshots.snapshot` reads from a pickle."""
    expandable = bool(data["figures"].get("expandable"))
    segments = tuple(
        Segment(
            s["addr"], s["size"], s.get("stream", 0), s["type"] == "small", expandable,
            tuple(UsedBlock(b[0], b[1], b[2], b[3] != "active_allocated") for b in s["blocks"]),
        )
        for s in data["end_segments"]
    )  # fmt: skip
    history = tuple(Entry(*event) for event in data["events"] if event[0] != "snapshot")
    return DeviceSnapshot(data["device"], segments, history, data.get("allocator_settings") or {})


def measure(row: dict[str, Any]) -> ReplayRow:
    """Replay one snapshot."""
    data = load(row["file"])
    name, source = row["file"].removesuffix(".json.gz"), row["source"].removeprefix("github.com/")
    torch = row.get("torch_by_frames") or row.get("torch_lock") or ""
    if data.get("kind") == "torch.profiler memory timeline":
        why = "a profiler timeline: it has no addresses and no segments"
        return ReplayRow(name, source, torch, 0, 0, 0, 0, why)
    snapshot = device_of(data)
    conf = alloc_conf(snapshot.alloc_conf)
    start = start_of(snapshot, conf)
    actions = [entry.action for entry in snapshot.history]
    counts = len(actions), actions.count("alloc"), sum(action.startswith("segment") for action in actions)
    if start.contradiction:
        return ReplayRow(name, source, torch, *counts, 0, start.contradiction)
    found = replay(snapshot, start.segments, conf)
    difference = ""
    if found.divergence is not None:
        difference = f"event {found.divergence.entry}: {found.divergence.what}"
    elif found.peak_reserved != data["figures"]["peak_reserved"]:
        difference = f"peak reserved {found.peak_reserved:,}, the snapshot's {data['figures']['peak_reserved']:,}"
    return ReplayRow(name, source, torch, *counts, found.peak_reserved, difference, found)


@cache
def rows() -> tuple[ReplayRow, ...]:
    """All of them."""
    return tuple(measure(row) for row in files())
