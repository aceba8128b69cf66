"""What tests ask of a list of real events, beside its peak."""

from __future__ import annotations

from collections.abc import Iterable

from graphmem.measuring.cpu_events import Event


def kept(events: Iterable[Event]) -> int:
    """Bytes held at the end above the start: negative when more was released than allocated."""
    return sum(event.bytes for event in events)


def lifetimes(events: Iterable[Event]) -> list[tuple[int, int, int | None]]:
    """Each allocation as (its index, bytes, index of its release or None); releases of older storage are left out."""
    open_at: dict[int, int] = {}
    spans: dict[int, tuple[int, int, int | None]] = {}
    for index, event in enumerate(events):
        if event.bytes > 0:
            open_at[event.address] = index
            spans[index] = (index, event.bytes, None)
        elif (start := open_at.pop(event.address, None)) is not None:
            spans[start] = (start, spans[start][1], index)
    return list(spans.values())
