"""A workload on the CPU, as PyTorch's profiler reports every allocation of tensor storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from graphmem.measuring.cpu_events import cpu_events, peak_rise
from graphmem.measuring.materialize import materialized
from graphmem.measuring.measurement import Run
from graphmem.tracing.loop import Watch, every_tensor, run_steps
from graphmem.tracing.world import World, local
from graphmem.workload import Workload


class _Holding(Watch):
    """Keeps what the loop holds at its end, so that dropping it is no part of the record."""

    def __init__(self) -> None:
        self.held: list[tuple[Any, ...]] = []

    def over(self, held: tuple[Any, ...]) -> None:
        self.held.append(held)


def measured(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    workload: Workload,
    world: World | None = None,
) -> Run:
    """Run it twice, each time with weights of its own, and record the second: the first fills the caches of libraries.

    ``world``: real ranks, of which this process is one.
    """
    runs = [_Fresh(*materialized(module, args, kwargs, "cpu"), world) for _ in range(2)]
    start = runs[1].nbytes
    watch = _Holding()

    def step() -> None:
        fresh = runs[0]
        called = fresh.module if world is None else world.wrapped(fresh.module)
        run_steps(called, fresh.args, fresh.kwargs, workload, watch)
        del fresh
        kept.append((called, runs.pop(0)))

    kept: list[Any] = []
    events = cpu_events(step)
    sizes = tuple(event.bytes for event in events)
    return Run(start, sizes, tuple(event.op for event in events), start + peak_rise(events))


class _Fresh:
    """A module and inputs that have not run."""

    def __init__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], world: World | None
    ) -> None:
        self.module, self.args, self.kwargs = module, args, kwargs
        if world is not None:
            world.spread(module)

    @property
    def nbytes(self) -> int:
        """Of everything that is there before the step."""
        tensors = [*self.module.parameters(), *self.module.buffers(), *every_tensor((self.args, dict(self.kwargs)))]
        storages = [local(tensor).untyped_storage() for tensor in tensors]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
