"""Truth 5: reserved memory from the model alone (trace → allocator), against what real runs reserved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphmem.timeline.allocator.conf import alloc_conf
from graphmem.timeline.reserved import simulated
from tests.accuracy.gpu import index, replayed
from tests.accuracy.snapshot_cases import CASES, SnapshotCase


@dataclass(frozen=True)
class ReservedRow:
    """Peak reserved in a snapshot and predicted, bytes. ``from_nothing``: the record begins with an empty allocator."""

    case: SnapshotCase
    from_nothing: bool
    #: Reserved when the record begins, where the script's own past is only known in part.
    real_start: int
    predicted_start: int
    real: int
    predicted: int

    @property
    def error(self) -> float:
        return self.predicted / self.real - 1


def measure(case: SnapshotCase) -> ReservedRow:
    """Run a snapshot's script on meta and serve its events, from its first line to the end of the record."""
    about = index()[case.file]
    trace, marks = replayed(case)
    conf = alloc_conf("expandable_segments:True" if about.get("expandable") else "")
    reserved = simulated(trace, conf).reserved
    begin = reserved[marks["start"] - 1] if marks["start"] else 0
    peak = max([begin, *reserved[marks["start"] : marks["end"]]])
    return ReservedRow(case, bool(about["starts_empty"]), about["start_reserved"], begin, about["peak_reserved"], peak)


def cases() -> list[SnapshotCase]:
    """Snapshots with segments: profiler timelines have none."""
    return [case for case in CASES if "timeline" not in case.file]


def rows() -> Iterator[ReservedRow]:
    """All of them."""
    for case in cases():
        yield measure(case)
