"""Histories written by hand: what was there at their beginning, and that they are served again as PyTorch served them."""

from __future__ import annotations

import pickle
from pathlib import Path

import graphmem
from graphmem.snapshots.replay import replay
from graphmem.snapshots.snapshot import DeviceSnapshot, Entry, Segment, UsedBlock
from graphmem.snapshots.start import start_of
from graphmem.timeline.allocator.conf import alloc_conf

MIB, BASE = 2**20, 0x7F00_0000_0000


def freed(address: int, size: int) -> list[Entry]:
    return [Entry("free_requested", address, size, 0), Entry("free_completed", address, size, 0)]


def served(snapshot: DeviceSnapshot, conf: str = "") -> str:
    start = start_of(snapshot, alloc_conf(conf))
    assert not start.contradiction
    different = replay(snapshot, start.segments, alloc_conf(conf)).divergence
    return "" if different is None else different.what


def test_up_to_one_mib_behind_a_large_block_is_its_own() -> None:
    """A, of 5 MiB, has 6; no free block of the large pool is that small."""
    history = [*freed(BASE + 6 * MIB, 3 * MIB), Entry("segment_alloc", BASE + 100 * MIB, 16 * MIB, 0)]
    history += [Entry("alloc", BASE + 100 * MIB, 14 * MIB + MIB // 2, 0), *freed(BASE, 5 * MIB)]
    last = UsedBlock(BASE + 100 * MIB, 15 * MIB, 14 * MIB + MIB // 2)
    end = (
        Segment(BASE, 20 * MIB, 0, False, False, ()),
        Segment(BASE + 100 * MIB, 16 * MIB, 0, False, False, (last._replace(size=14 * MIB + MIB // 2),)),
    )
    snapshot = DeviceSnapshot(0, end, tuple(history), {})
    start = start_of(snapshot, alloc_conf(""))
    assert [block.size for block in start.segments[0].used] == [6 * MIB, 3 * MIB]
    assert served(snapshot) == ""


def test_one_oversized_block_given_back_is_no_emptied_cache() -> None:
    history = [
        Entry("segment_free", BASE, 100 * MIB, 0), Entry("segment_alloc", BASE + 500 * MIB, 76 * MIB, 0),
        Entry("alloc", BASE + 500 * MIB, 76 * MIB, 0),
    ]  # fmt: skip
    end = (
        Segment(BASE + 200 * MIB, 30 * MIB, 0, False, False, ()),
        Segment(BASE + 500 * MIB, 76 * MIB, 0, False, False, (UsedBlock(BASE + 500 * MIB, 76 * MIB, 76 * MIB),)),
    )
    assert served(DeviceSnapshot(0, end, tuple(history), {}), "max_split_size_mb:64") == ""
    # Without the setting PyTorch would have given back everything, and this history cannot be.
    assert "releases" in served(DeviceSnapshot(0, end, tuple(history), {}))


def test_an_expandable_segment_is_mapped_again_before_its_first_page() -> None:
    page = 20 * MIB
    history = (Entry("segment_map", BASE, page, 0), Entry("alloc", BASE, page, 0))
    used = (UsedBlock(BASE, page, page), UsedBlock(BASE + page, page, page))
    snapshot = DeviceSnapshot(0, (Segment(BASE, 2 * page, 0, False, True, used),), history, {})
    assert served(snapshot, "expandable_segments:True") == ""


def test_pages_of_the_small_pool_are_told_by_their_size() -> None:
    history = [Entry("alloc", BASE, MIB, 0), *freed(BASE, MIB), Entry("segment_unmap", BASE, 6 * MIB, 0)]
    start = start_of(DeviceSnapshot(0, (), tuple(history), {}), alloc_conf("expandable_segments:True"))
    assert [(segment.small, segment.size) for segment in start.segments] == [(True, 6 * MIB)]


def _show(tmp_path: Path, history: list[dict[str, object]], segments: list[dict[str, object]]) -> graphmem.Report:
    path = tmp_path / "history.pickle"
    path.write_bytes(pickle.dumps({"segments": segments, "device_traces": [history]}))
    return graphmem.show(path)


def test_what_was_reserved_at_the_start_counts(tmp_path: Path) -> None:
    report = _show(
        tmp_path, [{"action": "segment_free", "addr": BASE, "size": 100 * MIB, "stream": 0, "frames": []}], []
    )
    assert report["peak_reserved"] == 100 * MIB
    assert report["reserved"] == 0


def test_a_history_of_one_failure(tmp_path: Path) -> None:
    report = _show(tmp_path, [{"action": "oom", "device_free": 0, "size": 100 * MIB, "stream": 0, "frames": []}], [])
    assert "104,857,600 bytes asked for" in str(report["out_of_memory_0"])
    assert report["peak_reserved"] == 0


def test_whole_pages_of_an_expandable_segment_can_be_returned(tmp_path: Path) -> None:
    block = {
        "address": BASE + 30 * MIB,
        "size": 3 * MIB,
        "requested_size": 3 * MIB,
        "state": "active_allocated",
        "frames": [],
    }
    segment = {
        "device": 0, "address": BASE, "total_size": 200 * MIB, "stream": 0, "segment_type": "large", "is_expandable": True, "blocks": [block],
    }  # fmt: skip
    (row,) = _show(tmp_path, [], [segment])["segments"].records()
    assert row["inactive_split"] == 17 * MIB  # the rest of the page from 20 to 40 MiB
