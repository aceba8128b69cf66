"""Real allocation events of a GPU, read from a distilled snapshot, and how a predicted sequence compares with them.

An event is (kind, block, bytes): "alloc" or "free", the number of the block, and the bytes that were asked for. Blocks are
numbered in the order of their allocation; blocks from before the record are numbered -1, -2, ... in the order of release.

Releases are taken where they were requested. A snapshot lists requested bytes; a profiler timeline lists block bytes
(multiples of 512, more where the allocator did not split) and does not say which block a release belongs to.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from graphmem.measuring.sequences import common_length, common_prefix

SNAPSHOTS = Path(__file__).parents[2].parent / "shared" / "gpu_snapshots"
BLOCK = 512

Event = tuple[str, int, int]


@dataclass(frozen=True)
class Comparison:
    """How a predicted sequence of events stands against the real one. All sizes are bytes.

    `matched` is the length of the longest common subsequence of (kind, bytes); `matched_any_order` is the same with each
    run of consecutive releases sorted, because autocast drops its cached weights in the order of a hash table.
    Rises are from the start to the highest point, changes from the start to the end, of blocks rounded to 512 bytes.
    """

    events: int
    predicted_events: int
    matched: int
    matched_any_order: int
    first_difference: tuple[int, Event | None, Event | None] | None
    real_rise: int
    predicted_rise: int
    real_change: int
    predicted_change: int


def load(file: str, folder: Path = SNAPSHOTS) -> dict[str, Any]:
    """The data of one snapshot file."""
    with gzip.open(folder / file) as stream:
        return json.load(stream)


def real_events(data: dict[str, Any]) -> list[Event]:
    """Allocations and requested releases, oldest first, without what the allocator did with its segments."""
    if data.get("kind") == "torch.profiler memory timeline":
        return [
            ("alloc" if action == 2 else "free", 0, abs(size))
            for _, action, size, _ in data["events"]
            if action in {2, 4}
        ]
    events: list[Event] = []
    blocks: dict[int, int] = {}
    count = older = 0
    for action, address, size, _ in data["events"]:
        if action == "alloc":
            blocks[address] = count
            events.append(("alloc", count, size))
            count += 1
        elif action == "free_requested":
            if address not in blocks:
                older -= 1
            events.append(("free", blocks.pop(address, older), size))
    return events


def in_blocks(events: Iterable[Event]) -> list[Event]:
    """The same events with sizes rounded up to multiples of 512 bytes, as profiler timelines list them."""
    return [(kind, block, -(-size // BLOCK) * BLOCK) for kind, block, size in events]


def compare(real: Sequence[Event], predicted: Sequence[Event]) -> Comparison:
    """Measure `predicted` against `real`."""
    mine, theirs = [_signed(event) for event in predicted], [_signed(event) for event in real]
    rises, changes = zip(_rise_and_change(real), _rise_and_change(predicted), strict=True)
    return Comparison(
        events=len(real),
        predicted_events=len(predicted),
        matched=common_length(theirs, mine),
        matched_any_order=common_length(_releases_sorted(theirs), _releases_sorted(mine)),
        first_difference=_first_difference(real, predicted),
        real_rise=rises[0],
        predicted_rise=rises[1],
        real_change=changes[0],
        predicted_change=changes[1],
    )


def _signed(event: Event) -> int:
    return event[2] if event[0] == "alloc" else -event[2]


def _releases_sorted(sizes: Sequence[int]) -> list[int]:
    runs = groupby(sizes, key=lambda size: size < 0)
    return [size for released, run in runs for size in (sorted(run) if released else run)]


def _rise_and_change(events: Iterable[Event]) -> tuple[int, int]:
    levels = list(accumulate((_signed(event) for event in in_blocks(events)), initial=0))
    return max(levels), levels[-1]


def _first_difference(
    real: Sequence[Event], predicted: Sequence[Event]
) -> tuple[int, Event | None, Event | None] | None:
    at = common_prefix([_signed(event) for event in real], [_signed(event) for event in predicted])
    theirs = real[at] if at < len(real) else None
    mine = predicted[at] if at < len(predicted) else None
    return None if theirs is mine is None else (at, theirs, mine)
