"""What PyTorch's CPU allocator really does while a step runs, event by event.

The profiler reports every allocation and release of tensor storage on the CPU, in order, with bytes and address. CPU
allocations are not rounded: `bytes` is the storage's own `nbytes()`; empty storage makes no event.

What is kept out of the record:

* what only a first run does (lazily made buffers and masks, imports, oneDNN primitives): `step` runs `warm_ups` times
  before it is recorded;
* when Python's cycle collector happens to run: it runs before the recording and stays off during it;
* how many cores there are: some kernels take a buffer per thread (layer norm backward), so `step` runs on one thread;
* releases of storage older than the warm-up, such as parameters and inputs: PyTorch does not know their size (it leaves
  them out, or gives the size of what an earlier recording saw at that address). Storage from the warm-up is known, so a
  step that replaces the gradients of the step before shows both sides. A step that ends by clearing its gradients
  (`backward(); zero_grad()`) starts from nothing and so has all of its peak above the start;
* memory that libraries take for themselves without asking PyTorch (oneDNN and MKL scratch): the profiler cannot see it.

What looks like noise and is real: a Python number in an operator (`x + 1`) becomes a tensor of 8 bytes, and then a
second one in the other operand's dtype.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

_RECORDED = "graphmem: the recorded step"


@dataclass(frozen=True)
class Event:
    """One storage allocated (`bytes` > 0) or released (`bytes` < 0) at `address`, inside the innermost operator `op`."""

    bytes: int
    address: int
    op: str = ""


def cpu_events(step: Callable[[], object], *, warm_ups: int = 1) -> list[Event]:
    """The allocations and releases of one run of `step`, oldest first. What `step` returns is dropped inside the record."""
    with _one_thread(), no_cycle_collection():
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            for _ in range(warm_ups):
                step()
            gc.collect()
            with record_function(_RECORDED):
                step()
        tree = recorded.profiler.kineto_results.experimental_event_tree()
    begin, end = next((node.start_time_ns, node.end_time_ns) for node in _nodes(tree) if node.name == _RECORDED)
    timed = sorted(_memory_events(tree), key=lambda found: found[0])
    known = _without_unknown_releases(timed)
    return [event for time, event in known if begin <= time <= end]


def peak_rise(events: Iterable[Event]) -> int:
    """The most bytes held above the start; 0 when nothing was ever allocated."""
    return max(accumulate((event.bytes for event in events), initial=0))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def no_cycle_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        yield node
        yield from _nodes(node.children)


def _memory_events(nodes: Iterable[Any], op: str = "") -> Iterator[tuple[int, Event]]:
    """(time in ns, event) of the profiler's event tree; `op` is the operator that the nodes are inside."""
    for node in nodes:
        if node.name == "[memory]":
            yield node.start_time_ns, Event(node.extra_fields.alloc_size, node.extra_fields.ptr, op)
        else:
            yield from _memory_events(node.children, "" if node.name == _RECORDED else node.name)


def _without_unknown_releases(timed: Iterable[tuple[int, Event]]) -> Iterator[tuple[int, Event]]:
    """Only releases of storage whose allocation was recorded too, with that allocation's bytes."""
    live: dict[int, int] = {}
    for time, event in timed:
        if event.bytes > 0:
            live[event.address] = event.bytes
            yield time, event
        elif event.address in live:
            yield time, Event(-live.pop(event.address), event.address, event.op)
