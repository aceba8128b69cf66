"""Truth 6: published figures of allocated, reserved and driver-level memory on one GPU, against trace → allocator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

from graphmem.errors import GraphmemError
from graphmem.hardware.context import overall_context
from graphmem.tracing.device import A100, Device, traced_for
from tests.accuracy.published_cases import CASES, PublishedCase


@dataclass(frozen=True)
class PublishedRow:
    """Bytes. ``allocated`` and ``reserved`` are predicted; ``context`` is the CUDA context counted on top of a driver-level figure."""

    case: PublishedCase
    device: str
    allocated: int
    reserved: int
    context: int

    @property
    def predicted(self) -> int:
        """What the figure is held against."""
        return self.allocated if self.case.metric == "allocated" else self.reserved + self.context

    @property
    def error(self) -> float:
        return self.predicted / self.case.measured - 1


def device_of(case: PublishedCase) -> Device:
    """The GPU a source names, else an A100; without its limit, since the run did fit; of the source's release of PyTorch."""
    try:
        found = traced_for(None, case.gpu, None) if case.gpu else A100
    except GraphmemError:
        found = A100
    release = case.torch.split(".")[:2]
    if len(release) == 2 and all(part.isdecimal() for part in release):
        found = replace(found, torch=(int(release[0]), int(release[1])))
    return replace(found, memory=None)


def measure(case: PublishedCase) -> PublishedRow:
    """Trace a case's settings and serve its events."""
    device = device_of(case)
    trace = case.trace(device)
    simulation = trace.simulate(case.alloc_conf)
    context = 0
    if case.metric == "driver":
        context = case.context or (device.context[1] if device.context else overall_context().median)
    return PublishedRow(case, device.name, simulation.peak_allocated, simulation.peak_reserved, context)


def rows() -> Iterator[PublishedRow]:
    """All of them."""
    for case in CASES:
        yield measure(case)


def summary(found: list[PublishedRow]) -> tuple[float, float]:
    """(median, worst) of the absolute errors."""
    errors = [abs(row.error) for row in found]
    return median(errors), max(errors)
