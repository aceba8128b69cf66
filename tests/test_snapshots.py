"""Memory snapshots: written from a trace for PyTorch's own tools, read back, and refused where they are not plain data."""

from __future__ import annotations

import base64
import gzip
import os
import pickle
import pickletools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import graphmem  # noqa: E402
from graphmem.errors import GraphmemError  # noqa: E402
from graphmem.snapshots.replay import replay  # noqa: E402
from graphmem.snapshots.snapshot import read_snapshot, snapshot_of  # noqa: E402
from graphmem.snapshots.start import start_of  # noqa: E402
from graphmem.snapshots.write import as_snapshot, snapshot_bytes  # noqa: E402
from graphmem.timeline.allocator.conf import alloc_conf  # noqa: E402

MIB = 2**20


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(512, 2048), torch.nn.Linear(2048, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.cuda.empty_cache()
        return self.second(torch.relu(self.first(x)))


def traced(conf: str = "", **choices: Any) -> graphmem.Trace:
    return graphmem.trace(Net(), torch.zeros(1024, 512), step="train", alloc_conf=conf, **choices)


CONFS = ["", "expandable_segments:True", "max_split_size_mb:20", "roundup_power2_divisions:4"]


@pytest.mark.parametrize("conf", CONFS)
def test_what_is_written_is_read_back_as_the_trace(conf: str, tmp_path: Path) -> None:
    trace = traced(conf)
    path = tmp_path / "step.pickle"
    path.write_bytes(snapshot_bytes(trace))
    (device,) = read_snapshot(path)
    moved = len([event for event in trace.events if event.op is None])
    steps = [entry for entry in device.history if entry.action in ("alloc", "free_requested")]
    assert sorted(entry.size for entry in steps[:moved]) == sorted(
        trace.blocks[e.block].nbytes for e in trace.events[:moved]
    )
    for entry, event in zip(steps[moved:], trace.events[moved:], strict=True):
        assert (entry.action == "alloc") == event.alloc
        assert entry.size == trace.blocks[event.block].nbytes
        op = trace.ops[event.op]  # type: ignore[index]
        assert entry.frames[0].name == op.name
        assert f"{entry.frames[0].filename}:{entry.frames[0].line}" == (op.line or ":0")
        assert not op.module or entry.frames[1].filename == op.module
    assert device.reserved == trace.simulation.reserved[-1]
    assert device.allocated == trace.simulation.allocated[-1]
    assert alloc_conf(device.alloc_conf) == alloc_conf(conf)


@pytest.mark.parametrize("conf", CONFS)
def test_what_is_written_replays(conf: str) -> None:
    trace = traced(conf)
    (device,) = snapshot_of(as_snapshot(trace), "")
    start = start_of(device, alloc_conf(conf))
    assert (start.segments, start.contradiction) == ((), "")  # from nothing
    again = replay(device, start.segments, alloc_conf(conf))
    assert again.divergence is None
    assert again.simulation.peak_reserved == trace.reserved


@pytest.mark.parametrize("conf", CONFS)
def test_pytorchs_own_tools_read_it(conf: str) -> None:
    from torch.cuda import _memory_viz as viz

    trace = traced(conf)
    found = pickle.loads(snapshot_bytes(trace))

    def plain(lines: str) -> str:
        return lines

    assert "total_reserved" in viz.segsum(found) or "Summary of segments" in viz.segsum(found)
    assert ("segment_map" if "expandable" in conf else "cudaMalloc") in viz.trace(found)
    for page in (viz.trace_plot(found), viz.segment_plot(found)):
        (embedded,) = re.findall(r'"base64": "([^"]+)"', page)  # what the page at pytorch.org/memory_viz opens
        assert pickle.loads(base64.b64decode(embedded)) == found
    assert viz.compare(found["segments"], found["segments"], plain) == ""
    assert "aten" in viz.segments(found, plain)
    assert "aten" in viz.memory(found, plain)


#: What the unpickler of pytorch.org/memory_viz knows (torch/utils/viz/MemoryViz.js).
_PAGE_KNOWS = {
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPUT", "BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
    "FRAME", "LONG1", "LONG_BINGET", "MARK", "MEMOIZE", "NEWFALSE", "NEWTRUE", "NONE", "PROTO", "SETITEM", "SETITEMS", "SHORT_BINUNICODE", "STOP",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip


@pytest.mark.parametrize("conf", CONFS)
def test_the_memory_viz_page_can_read_it(conf: str) -> None:
    opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(snapshot_bytes(traced(conf)))]
    assert {name for name, _ in opcodes} <= _PAGE_KNOWS
    assert ("PROTO", 4) in opcodes  # it refuses 5
    numbers = [argument for _, argument in opcodes if isinstance(argument, int)]
    assert max(numbers) < 2**53, "JavaScript has no larger whole numbers"


def test_a_step_that_dies_ends_with_the_oom_entry(tmp_path: Path) -> None:
    trace = traced(memory=(414 + 40) * MIB)
    assert trace.simulation.out_of_memory is not None
    found = as_snapshot(trace)
    last = found["device_traces"][0][-1]
    assert last["action"] == "oom"
    assert last["size"] == -(-trace.simulation.out_of_memory.nbytes // 512) * 512
    path = tmp_path / "died.pickle"
    path.write_bytes(pickle.dumps(found))
    assert f"event {len(found['device_traces'][0]) - 1}, {last['size']:,} bytes asked for" in str(graphmem.show(path))


def test_show_tells_what_the_trace_does(tmp_path: Path) -> None:
    trace = traced()
    path = tmp_path / "step.pickle"
    path.write_bytes(gzip.compress(snapshot_bytes(trace)))
    report = graphmem.show(path, events=True)
    assert report["peak"] == trace.simulation.peak_allocated
    assert report["peak_reserved"] == trace.reserved
    assert report["reserved"] == trace.simulation.reserved[-1]
    assert report["reproduced"] == "yes, every address and segment"
    by_kind = {row["kind"]: row["bytes"] for row in report["peak_kinds"]}
    assert by_kind["parameter"] == sum(p.numel() * 4 for p in Net().parameters())
    assert "unknown" not in by_kind
    settings = {row["setting"]: row["reserved"] for row in report["alloc_conf"]}
    assert settings["(default)"] == settings["(as recorded)"] == trace.reserved
    assert settings["expandable_segments:True"] == traced("expandable_segments:True").reserved
    timeline = report["timeline"].records()
    assert max(row["reserved"] for row in timeline) == trace.reserved
    assert max(row["allocated"] for row in timeline) == trace.simulation.peak_allocated


def test_a_history_that_begins_mid_way(tmp_path: Path) -> None:
    whole = as_snapshot(traced())
    for cut in (5, 20, len(whole["device_traces"][0]) // 2, len(whole["device_traces"][0]) - 1):
        found = {**whole, "device_traces": [whole["device_traces"][0][cut:]]}
        path = tmp_path / f"{cut}.pickle"
        path.write_bytes(pickle.dumps(found))
        report = graphmem.show(path)
        assert report["reserved"] == sum(segment["total_size"] for segment in whole["segments"])
        assert report["reproduced"] == "yes, every address and segment", cut
        assert "begins with memory in use" in " ".join(report.notes)


def test_several_devices_and_unknown_additions(tmp_path: Path) -> None:
    found = as_snapshot(traced())
    second = [{**segment, "device": 1} for segment in found["segments"]]
    history = [{**entry, "compile_context": "1", "user_metadata": ""} for entry in found["device_traces"][0]]
    mark = {"action": "user_defined", "addr": 0, "size": 0, "stream": 0, "frames": []}
    both = {**found, "segments": found["segments"] + second, "device_traces": [[], [mark, *history], []], "new": object}
    del both["new"]
    path = tmp_path / "two.pickle"
    path.write_bytes(pickle.dumps(both))
    report = graphmem.show(path)
    assert [section.name for section in report.sections] == ["device 0", "device 1"]
    assert report.section("device 1")["reproduced"] == "yes, every address and segment"
    assert "device 0: no history was recorded" in " ".join(report.notes)


def test_a_history_that_contradicts_its_end_is_said(tmp_path: Path) -> None:
    found = as_snapshot(traced())
    found["device_traces"][0].append({"action": "alloc", "addr": 4096, "size": 512, "stream": 0, "frames": []})
    path = tmp_path / "odd.pickle"
    path.write_bytes(pickle.dumps(found))
    report = graphmem.show(path)
    assert report.warnings == (
        "the history does not lead to the state at its end (the block of 512 bytes at 0x1000 is allocated and never freed, yet not there); "
        "only that state is shown",
    )


class _Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/graphmem-was-here",)


def _snapshot(**changes: Any) -> bytes:
    return pickle.dumps({"segments": [], "device_traces": [], **changes})


_SEGMENT = {
    "device": 0, "address": 4096, "total_size": 2 * MIB, "stream": 0, "segment_type": "small",
    "blocks": [{"address": 4096, "size": 2 * MIB, "state": "inactive"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            pickle.dumps({"segments": [_Evil()]}),
            "{path}: holds posix.system, which is code; a memory snapshot is plain dicts and lists, so this file was not opened",
        ),
        (
            pickle.dumps({"segments": [], "x": Path("x")}),
            "{path}: holds pathlib.PosixPath, which is code; a memory snapshot is plain dicts and lists, so this file was not opened",
        ),
        (_snapshot()[:-10], "{path}: ends in the middle of the pickle; copy or dump it again"),
        (b"", "{path}: ends in the middle of the pickle; copy or dump it again"),
        (b"hello world", "{path}: is no pickle of a memory snapshot"),
        (
            pickle.dumps([1, 2]),
            "{path}: is no memory snapshot (no 'segments'); write one with torch.cuda.memory._dump_snapshot(path)",
        ),
        (
            _snapshot(device_traces=[[{"action": "teleport", "addr": 1, "size": 2}]]),
            "{path}: has an event 'teleport', which this version of graphmem does not know (a newer PyTorch wrote it?)",
        ),
        (
            _snapshot(device_traces=[[{"action": "alloc", "addr": "x", "size": 2}]]),
            "{path}: 'addr' is 'x' where a memory snapshot has int",
        ),
        (_snapshot(segments=[{**_SEGMENT, "total_size": None}]), "{path}: 'total_size' is None where a memory snapshot has int"),
        (_snapshot(segments=7), "{path}: 'segments' is 7 where a memory snapshot has list"),
        (
            _snapshot(segments=[{**_SEGMENT, "blocks": [{"address": 0, "size": 512, "state": "active_allocated"}]}]),
            "{path}: a block lies outside its segment at 0x1000",
        ),
        (None, "{path}: no such file"),
    ],
)  # fmt: skip
def test_bad_snapshots_are_one_line(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pickle"
    if content is not None:
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "graphmem", "show", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f"graphmem: {said.format(path=path)}\n"
    assert done.stdout == ""
    assert not Path("/tmp/graphmem-was-here").exists()


def test_show_needs_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "step.pickle"
    path.write_bytes(snapshot_bytes(traced()))
    program = (
        f"import graphmem, sys; str(graphmem.show({str(path)!r})); assert not {{'torch', 'numpy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class Growing(torch.nn.Module):
    """Every pass needs a little more than the one before, and keeps a piece."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for i in range(12):
            large = x.new_empty((40 + 7 * i) * MIB)
            kept.append(x.new_empty(12 * MIB))
            del large
        return x


@pytest.mark.parametrize(
    "conf",
    ["", "expandable_segments:True", "max_split_size_mb:64", "max_split_size_mb:64,max_non_split_rounding_mb:40",
     "garbage_collection_threshold:0.5,per_process_memory_fraction:0.8"],
)  # fmt: skip
def test_under_pressure_it_replays_too(conf: str) -> None:
    trace = graphmem.trace(Growing(), torch.zeros(4), grad=False, memory=(414 + 1150) * MIB, alloc_conf=conf)
    actions = [event[0] for _, event in trace.simulation.segment_events]
    assert trace.simulation.out_of_memory is None
    assert conf.startswith("expandable") or "segment_free" in actions
    report = graphmem.show(as_snapshot(trace))
    assert report["reproduced"] == "yes, every address and segment"
    recorded, *others = report["alloc_conf"].records()
    assert recorded["reserved"] == trace.reserved
    # Under the same settings on a device without end nothing is given back, so as much or more is reserved.
    assert others[0]["reserved"] >= trace.reserved


def test_what_a_program_empties_is_emptied_under_other_settings_and_retries_are_not() -> None:
    free, retried = (
        as_snapshot(traced()),
        as_snapshot(graphmem.trace(Growing(), torch.zeros(4), grad=False, memory=(414 + 1150) * MIB)),
    )
    assert {row["setting"]: row["change"] for row in graphmem.show(free)["alloc_conf"]}["(default)"] == 0
    unlimited = graphmem.trace(Growing(), torch.zeros(4), grad=False)
    rows = {row["setting"]: row["reserved"] for row in graphmem.show(retried)["alloc_conf"]}
    assert rows["(default)"] == unlimited.reserved
    assert rows["expandable_segments:True"] == unlimited.simulate("expandable_segments:True").peak_reserved


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: graphmem.show(5),
            "show needs a file, or the dict of torch.cuda.memory._snapshot\\(\\); this is a int",
        ),
        (lambda: traced(5), "alloc-conf 5: write it as text"),
        (lambda: traced().simulate(5), "alloc-conf 5: write it as text"),
        (lambda: traced(gpu=5), "gpu 5: name one, such as"),
        (lambda: traced(memory="much"), "memory 'much' is no size; write it as 24GiB"),
    ],
)
def test_wrong_types_are_said(call: Any, said: str) -> None:
    with pytest.raises(GraphmemError, match=said):
        call()


def test_sizes_are_read_as_people_write_them() -> None:
    assert traced(memory="24gib").device.memory == traced(memory="24 GiB").device.memory == 24 * 2**30
    assert traced(memory="80GB").device.memory == 80 * 10**9
