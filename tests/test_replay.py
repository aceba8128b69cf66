"""Real CUDA memory histories, served again: the simulated allocator must choose every address that PyTorch's did."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graphmem.snapshots.replay import replay
from graphmem.snapshots.start import start_of
from graphmem.timeline.allocator.conf import alloc_conf
from tests.accuracy.snapshots import SNAPSHOTS, load

pytestmark = pytest.mark.skipif(not SNAPSHOTS.exists(), reason="../shared/gpu_snapshots is not here")


def test_every_snapshot_is_reproduced_address_by_address() -> None:
    from tests.accuracy.replays import rows

    found = rows()
    replayed = [row for row in found if row.replay is not None]
    assert len(replayed) == len([row for row in found if "profiler timeline" not in row.difference]) >= 136
    assert [row.file for row in replayed if row.difference] == []
    assert sum(row.allocations for row in replayed) > 290_000
    assert sum(row.segment_events for row in replayed) > 14_000


def test_the_simulation_counts_as_the_snapshot_does() -> None:
    """Peak allocated and reserved in block bytes, as the distilled figures have them, where their start state is exact."""
    from tests.accuracy.replays import files, rows

    for row, found in zip(files(), rows(), strict=True):
        figures = load(row["file"]).get("figures")
        if not figures or not row.get("exact") or not row.get("allocs"):
            continue
        simulation = found.replay.simulation  # type: ignore[union-attr]
        assert max(simulation.allocated) == figures["peak_alloc"], row["file"]
        assert simulation.reserved[-1] == figures["end_reserved"]


@pytest.mark.parametrize("wrong", ["expandable_segments:True", "roundup_power2_divisions:2", "max_split_size_mb:20"])
def test_the_replay_can_fail(wrong: str) -> None:
    from tests.accuracy.replays import device_of, files

    row = next(row for row in files() if "forward_and_backward_memory_snapshot_100" in row["file"])
    snapshot = device_of(load(row["file"]))
    start = start_of(snapshot, alloc_conf(""))
    assert replay(snapshot, start.segments, alloc_conf("")).divergence is None
    assert replay(snapshot, start.segments, alloc_conf(wrong)).divergence is not None
    # One request 600 bytes larger, and an address is another one sooner or later.
    place = next(i for i, entry in enumerate(snapshot.history) if entry.action == "alloc" and entry.size == 2048)
    larger = snapshot.history[place]._replace(size=2648)
    history = (*snapshot.history[:place], larger, *snapshot.history[place + 1 :])
    assert replay(replace(snapshot, history=history), start.segments, alloc_conf("")).divergence is not None
