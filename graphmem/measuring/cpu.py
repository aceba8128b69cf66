"""A workload on the CPU, as PyTorch's profiler reports every allocation of tensor storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from graphmem.measuring.cpu_events import cpu_events, peak_rise
from graphmem.measuring.materialize import materialized
from graphmem.measuring.measurement import Run
from graphmem.tracing.loop import Watch, every_tensor, run_steps
from graphmem.workload import Workload


class _Holding(Watch):
    """Keeps what the loop holds at its end, so that dropping it is no part of the record."""

    def __init__(self) -> None:
        self.held: list[tuple[Any, ...]] = []

    def over(self, held: tuple[Any, ...]) -> None:
        self.held.append(held)


def measured(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], workload: Workload) -> Run:
    """Run it twice, each time with weights of its own, and record the second: the first fills the caches of libraries."""
    runs = [materialized(module, args, kwargs, "cpu") for _ in range(2)]
    start = _bytes_of(*runs[1])
    watch = _Holding()

    def step() -> None:
        fresh, real_args, real_kwargs = runs[0]
        run_steps(fresh, real_args, real_kwargs, workload, watch)
        del fresh, real_args, real_kwargs
        kept.append(runs.pop(0))

    kept: list[Any] = []
    events = cpu_events(step)
    sizes = tuple(event.bytes for event in events)
    return Run(start, sizes, tuple(event.op for event in events), start + peak_rise(events))


def _bytes_of(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    tensors = [*module.parameters(), *module.buffers(), *every_tensor((args, dict(kwargs)))]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
