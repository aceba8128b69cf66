"""What a memory snapshot holds, checked once: segments with their blocks, and the history of each device.

Source of the format: torch/csrc/cuda/memory_snapshot.cpp and torch/cuda/_memory_viz.py, PyTorch 2.1 to 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from graphmem.errors import CheckpointError, UnsupportedError
from graphmem.snapshots.unpickle import load_plain

#: What the allocator did, in the snapshot's words. ``segment_*``: with the device; ``oom``: could not.
ACTIONS = (
    "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "segment_map", "segment_unmap", "oom",
)  # fmt: skip
#: What takes memory from the device, and what gives it back.
GROWS, RELEASES = ("segment_alloc", "segment_map"), ("segment_free", "segment_unmap")
#: Entries that mark a moment and change nothing.
_MARKS = ("snapshot", "user_defined", "workspace_snapshot")


class Frame(NamedTuple):
    """One line of a stack."""

    filename: str
    line: int
    name: str


class Entry(NamedTuple):
    """One event of the history. ``size``: of an allocation, the bytes asked for; of an ``oom`` the bytes that were not had."""

    action: str
    address: int
    size: int
    stream: int
    #: Innermost first; empty unless stacks were recorded.
    frames: tuple[Frame, ...] = ()


class UsedBlock(NamedTuple):
    """A block that is not free. ``waiting``: freed, but another stream still uses it."""

    address: int
    size: int
    requested: int
    waiting: bool = False
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True)
class Segment:
    """What the device gave at once, or a mapped stretch of an expandable segment; what no used block covers is free."""

    address: int
    size: int
    stream: int
    small: bool
    expandable: bool
    used: tuple[UsedBlock, ...]
    #: Of a private pool (CUDA graphs); (0, 0): the ordinary pool.
    pool: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class DeviceSnapshot:
    """One GPU: its segments when the snapshot was taken, and its history before, oldest first."""

    device: int
    segments: tuple[Segment, ...]
    history: tuple[Entry, ...]
    settings: dict[str, Any]

    @property
    def reserved(self) -> int:
        """Bytes."""
        return sum(segment.size for segment in self.segments)

    @property
    def allocated(self) -> int:
        """Bytes."""
        return sum(block.size for segment in self.segments for block in segment.used if not block.waiting)

    @property
    def alloc_conf(self) -> str:
        """The allocator settings it was made under, as graphmem reads them; empty: the defaults."""
        text = str(self.settings.get("PYTORCH_CUDA_ALLOC_CONF") or self.settings.get("PYTORCH_ALLOC_CONF") or "")
        if not text and (self.settings.get("expandable_segments") or any(s.expandable for s in self.segments)):
            text = "expandable_segments:True"
        return text


def read_snapshot(path: Path) -> tuple[DeviceSnapshot, ...]:
    """The devices of a snapshot file that have segments or a history.

    Raises:
        TargetError: there is no such file.
        CheckpointError: it is no memory snapshot, is cut off or holds code.
        UnsupportedError: it has something this version does not know, by name.
    """
    return snapshot_of(load_plain(path), str(path))


def snapshot_of(found: Any, name: str) -> tuple[DeviceSnapshot, ...]:
    """The devices of an unpickled snapshot; see `read_snapshot`."""
    if not isinstance(found, dict) or "segments" not in found:
        raise CheckpointError(
            f"{name}: is no memory snapshot (no 'segments'); write one with torch.cuda.memory._dump_snapshot(path)"
        )
    check = _Checked(name)
    settings = found.get("allocator_settings")
    histories = [check.history(entries, device) for device, entries in enumerate(found.get("device_traces") or ())]
    by_device: dict[int, list[Segment]] = {}
    for segment in check(list, found, "segments"):
        by_device.setdefault(check(int, segment, "device", 0), []).append(check.segment(segment))
    last = max([len(histories) - 1, *by_device])
    devices = (
        DeviceSnapshot(
            device,
            tuple(sorted(by_device.get(device, ()), key=lambda segment: segment.address)),
            histories[device] if device < len(histories) else (),
            settings if isinstance(settings, dict) else {},
        )
        for device in range(last + 1)
    )
    return tuple(device for device in devices if device.segments or device.history)


@dataclass(frozen=True)
class _Checked:
    """Reads values out of a snapshot that anybody may have written."""

    name: str

    def __call__(self, kind: Callable[[Any], Any], found: Any, key: str, default: Any = None) -> Any:
        value = found.get(key, default) if isinstance(found, dict) else None
        if isinstance(value, bool) or not isinstance(value, kind):  # type: ignore[arg-type]
            raise CheckpointError(f"{self.name}: '{key}' is {value!r:.60} where a memory snapshot has {kind.__name__}")
        return value

    def history(self, entries: Any, device: int) -> tuple[Entry, ...]:
        if not isinstance(entries, list | tuple):
            raise CheckpointError(f"{self.name}: the history of device {device} is no list")
        found = []
        for entry in entries:
            action = self(str, entry, "action")
            if action in _MARKS:
                continue
            if action not in ACTIONS:
                raise UnsupportedError(
                    f"{self.name}: has an event {action!r}, which this version of graphmem does not know (a newer PyTorch wrote it?)"
                )
            address = 0 if action == "oom" else self(int, entry, "addr")
            found.append(
                Entry(action, address, self(int, entry, "size"), self(int, entry, "stream", 0), self.frames(entry))
            )
        return tuple(found)

    def segment(self, found: Any) -> Segment:
        address, size = self(int, found, "address"), self(int, found, "total_size")
        small = self(str, found, "segment_type", "large") == "small"
        used, position = [], address
        for block in self(list, found, "blocks", []):
            begin, nbytes = self(int, block, "address", position), self(int, block, "size")
            state = self(str, block, "state")
            if state != "inactive":
                waiting = state != "active_allocated"
                asked = self(int, block, "requested_size", nbytes)
                used.append(UsedBlock(begin, nbytes, asked, waiting, self.frames(block)))
            position = begin + nbytes
        if any(b.address < address or b.address + b.size > address + size for b in used):
            raise CheckpointError(f"{self.name}: a block lies outside its segment at {address:#x}")
        pool = tuple(found.get("segment_pool_id", (0, 0)))
        expandable = bool(found.get("is_expandable", False))
        return Segment(address, size, self(int, found, "stream", 0), small, expandable, tuple(used), pool)

    def frames(self, found: Any) -> tuple[Frame, ...]:
        frames = found.get("frames") or ()
        if not isinstance(frames, list | tuple):
            raise CheckpointError(f"{self.name}: 'frames' is no list")
        return tuple(Frame(self(str, f, "filename"), self(int, f, "line"), self(str, f, "name")) for f in frames)
