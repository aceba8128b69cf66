"""A workload on a CUDA device under PyTorch's own memory history."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch

from graphmem.errors import GraphmemError
from graphmem.measuring.materialize import materialized
from graphmem.measuring.measurement import Run
from graphmem.snapshots.kinds import place_of
from graphmem.snapshots.snapshot import DeviceSnapshot, snapshot_of
from graphmem.tracing.device import Device
from graphmem.tracing.loop import Watch, run_steps
from graphmem.tracing.names import torch_release
from graphmem.workload import Workload

#: More events than any step makes; a ring buffer that wrapped would lose the beginning.
_MOST_EVENTS = 10_000_000


def this_device() -> Device:
    """The current CUDA device and the installed PyTorch, to predict for.

    Raises:
        GraphmemError: there is none.
    """
    if not torch.cuda.is_available():
        raise GraphmemError("this machine has no CUDA device that torch can use; measure with --device cpu")
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    capability = found.major, found.minor
    return Device("cuda", found.name, capability, found.multi_processor_count, torch_release(), found.total_memory)


class _Snapping(Watch):
    """Takes the snapshot while output, loss and optimizer are still held."""

    device = "cuda"

    def __init__(self) -> None:
        self.taken: Any = None

    def over(self, held: tuple[Any, ...]) -> None:
        torch.cuda.synchronize()
        self.taken = torch.cuda.memory._snapshot()


def measured(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], workload: Workload) -> Run:
    """Run it from an empty allocator, weights included, and read the history.

    Raises:
        GraphmemError: something is allocated already.
    """
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.memory_reserved():
        raise GraphmemError("this process has memory on the device already; measure in a fresh one")
    torch.cuda.reset_peak_memory_stats()
    watch, told, was_on = _Snapping(), "", gc.isenabled()
    torch.cuda.memory._record_memory_history(max_entries=_MOST_EVENTS, stacks="python")
    try:
        gc.disable()
        real, real_args, real_kwargs = materialized(module, args, kwargs, "cuda")
        run_steps(real, real_args, real_kwargs, workload, watch)
    except torch.OutOfMemoryError as error:
        told = str(error)
        watch.taken = torch.cuda.memory._snapshot()
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
        if was_on:
            gc.enable()
    free, total = torch.cuda.mem_get_info()
    (snapshot,) = [
        found for found in snapshot_of(watch.taken, "this run") if found.device == torch.cuda.current_device()
    ]
    return run_of(snapshot, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), total - free, told)


def run_of(snapshot: DeviceSnapshot, peak: int, reserved: int, driver: int, out_of_memory: str = "") -> Run:
    """The history as a run from nothing."""
    entries = [entry for entry in snapshot.history if entry.action in ("alloc", "free_requested")]
    sizes = tuple(entry.size if entry.action == "alloc" else -entry.size for entry in entries)
    places = tuple(place_of(entry.frames) for entry in entries)
    return Run(0, sizes, places, peak, reserved, (driver, driver), out_of_memory)
