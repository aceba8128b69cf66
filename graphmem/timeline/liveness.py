"""From events to what is alive: totals over time, the peak, and what stands there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graphmem.timeline.events import Block, Event, rounded


@dataclass(frozen=True, slots=True)
class Peak:
    """The first moment of most memory. ``event`` is the index of the allocation that reached it; -1: nothing was allocated."""

    nbytes: int
    event: int
    op: int | None


def running_total(blocks: Sequence[Block], events: Iterable[Event], rounding: int) -> list[int]:
    """Bytes allocated after each event, every block rounded up to a multiple of ``rounding``."""
    total, totals = 0, []
    for event in events:
        size = rounded(blocks[event.block].nbytes, rounding)
        total += size if event.alloc else -size
        totals.append(total)
    return totals


def peak_of(events: Sequence[Event], totals: Sequence[int]) -> Peak:
    """The first event after which most is allocated."""
    if not totals:
        return Peak(0, -1, None)
    at = max(range(len(totals)), key=totals.__getitem__)
    return Peak(totals[at], at, events[at].op)


def alive_after(events: Sequence[Event], at: int) -> list[int]:
    """The blocks alive after the event ``at``, in the order they were allocated."""
    alive: dict[int, None] = {}
    for event in events[: at + 1]:
        if event.alloc:
            alive[event.block] = None
        else:
            alive.pop(event.block, None)
    return list(alive)
