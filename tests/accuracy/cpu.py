"""Truth 1: what PyTorch's CPU allocator does in a real run, against the trace with the ``cpu`` rules, event by event."""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from graphmem.measuring.cpu_events import cpu_events, no_cycle_collection, peak_rise
from graphmem.measuring.sequences import common_length
from graphmem.timeline.events import Event, Phase
from graphmem.tracing.device import CPU
from graphmem.tracing.on_meta import map_tensors, module_on_meta
from graphmem.tracing.recorder import Recorder
from graphmem.tracing.step import Inputs, finished, record, start_state
from graphmem.tracing.trace import Trace


@dataclass(frozen=True)
class Case:
    """A module with inputs, and whether the step trains it."""

    name: str
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss: Callable[[Any], torch.Tensor]
    train: bool


@dataclass(frozen=True)
class Comparison:
    """Bytes; ``start`` is what is there before the step, the peaks include it."""

    name: str
    train: bool
    start: int
    measured: int
    predicted: int
    real_events: int
    matched: int
    first_difference: str

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def one_step(
    case: Case, module: torch.nn.Module, args: Any, kwargs: Any, enter: Callable[[Phase], None] = lambda phase: None
) -> Callable[[], None]:
    """The step of ``case`` as a function that leaves no gradient behind. It says which phase it enters."""

    def train() -> None:
        enter("forward")
        loss = case.loss(module(*args, **kwargs))
        enter("backward")
        loss.backward()
        enter("optimizer")
        module.zero_grad()
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                value.grad = None

    def infer() -> None:
        with torch.no_grad():
            module(*args, **kwargs)

    return train if case.train else infer


def predict(case: Case) -> tuple[Trace, int]:
    """The trace of the second of two steps, and the index of its first event."""
    module, data = module_on_meta(case.module)
    known = dict(data)

    def on_meta(tensor: torch.Tensor) -> torch.Tensor:
        twin = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        known[id(twin)] = tensor.detach()
        return twin.requires_grad_(tensor.requires_grad)

    inputs = Inputs(map_tensors(case.args, on_meta), map_tensors(case.kwargs, on_meta), known)
    begin = 0

    def run(recorder: Recorder) -> None:
        nonlocal begin
        start_state(recorder, module, inputs)
        step = one_step(case, module, inputs.args, inputs.kwargs, lambda phase: setattr(recorder, "phase", phase))
        for recorder.step in range(2):
            gc.collect()
            begin = len(recorder.ledger.events)
            step()

    with warnings.catch_warnings(), no_cycle_collection():
        warnings.simplefilter("ignore")
        recorder = record(run, CPU, module)
    return finished(recorder, case.name, {}), begin


def forget_cached_tensors() -> None:
    """Clear every ``lru_cache`` of transformers: the tensors a real run leaves in one are no part of a trace, nor the reverse."""
    for found in gc.get_objects():
        if type(found) is functools._lru_cache_wrapper and str(found.__module__).startswith("transformers.models"):
            found.cache_clear()


def compare(case: Case) -> Comparison:
    """Run it for real, trace it, and hold the two against each other."""
    forget_cached_tensors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = cpu_events(one_step(case, case.module, case.args, case.kwargs))
    forget_cached_tensors()
    trace, begin = predict(case)
    forget_cached_tensors()
    sizes = [event.bytes for event in real]
    ours = [_signed(trace, event) for event in trace.events[begin:]]
    before = trace.totals[begin - 1] if begin else 0
    differs = next((i for i, (a, b) in enumerate(zip(sizes, ours, strict=False)) if a != b), None)
    first = ""
    if differs is not None:
        event = trace.events[begin + differs]
        op = trace.ops[event.op].name if event.op is not None else ""
        first = f"#{differs}: real {sizes[differs]} in {real[differs].op}, ours {ours[differs]} in {op}"
    return Comparison(
        case.name, case.train, before, before + peak_rise(real), before + max([0, *_cumulative(ours)]), len(sizes),
        common_length(sizes, ours), first,
    )  # fmt: skip


def _signed(trace: Trace, event: Event) -> int:
    nbytes = trace.blocks[event.block].nbytes
    return nbytes if event.alloc else -nbytes


def _cumulative(sizes: list[int]) -> list[int]:
    total, totals = 0, []
    for size in sizes:
        total += size
        totals.append(total)
    return totals
