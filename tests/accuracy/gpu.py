"""Truth 2: allocation events of real GPU steps (public snapshots), against the trace of the scripts that made them."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from graphmem.tracing.device import A100, H100, Device
from graphmem.tracing.recorder import Recorder
from graphmem.tracing.step import finished, record
from graphmem.tracing.trace import Trace
from tests.accuracy.snapshot_cases import SnapshotCase
from tests.accuracy.snapshots import SNAPSHOTS, Comparison, Event, compare, in_blocks, load, real_events

#: cuBLAS's workspace on Hopper: the one thing in a snapshot that tells an H100-class GPU.
_HOPPER_WORKSPACE = "33554432"


@dataclass(frozen=True)
class Row:
    """One snapshot. Peaks are in bytes asked for, from nothing; ``comparison`` counts events and rises in blocks of 512."""

    case: SnapshotCase
    source: str
    gpu: str
    comparison: Comparison
    measured_peak: int
    predicted_peak: int

    @property
    def events_matched(self) -> float:
        return self.comparison.matched_any_order / max(self.comparison.events, 1)

    @property
    def peak_error(self) -> float:
        return self.predicted_peak / self.measured_peak - 1


@cache
def index() -> dict[str, Any]:
    """The rows of the snapshots' index, by file."""
    return {row["file"]: row for row in json.loads((SNAPSHOTS / "index.json").read_text())}


def device_of(case: SnapshotCase) -> Device:
    """The GPU a snapshot was made on, as far as it tells, with its release of PyTorch."""
    hopper = _HOPPER_WORKSPACE in str(index()[case.file].get("cublas_workspaces_at_end"))
    major, minor = case.torch.split(".")[:2]
    return replace(H100 if hopper else A100, torch=(int(major), int(minor)))


@cache
def replayed(case: SnapshotCase) -> tuple[Trace, dict[str, int]]:
    """The trace of the whole script, and the events at which its marks stand."""
    marks: dict[str, int] = {}

    def run(recorder: Recorder) -> None:
        with torch.device("cuda"):  # meta, to everyone but the script
            case.script(lambda name: marks.__setitem__(name, len(recorder.ledger.events)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = finished(record(run, device_of(case)), case.name, {})
    return trace, marks


def predicted(case: SnapshotCase) -> tuple[list[Event], int]:
    """The events between the script's marks, and the most bytes asked for at once between them."""
    trace, marks = replayed(case)
    events: list[Event] = []
    total = peak = 0
    for position, event in enumerate(trace.events[: marks["end"]]):
        nbytes = trace.blocks[event.block].nbytes
        total += nbytes if event.alloc else -nbytes
        if position >= marks["start"]:
            events.append(("alloc" if event.alloc else "free", event.block, nbytes))
            peak = max(peak, total)
    return events, peak


def measure(case: SnapshotCase) -> Row:
    """Run a case and hold it against its snapshot."""
    data, about = load(case.file), index()[case.file]
    real = real_events(data)
    events, peak = predicted(case)
    timeline = data.get("kind") == "torch.profiler memory timeline"
    comparison = compare(real, in_blocks(events) if timeline else events)
    measured = about.get("peak_req") or about.get("peak_alloc") or 0
    return Row(case, about["source"].removeprefix("github.com/"), device_of(case).name, comparison, measured, peak)
