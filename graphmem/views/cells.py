"""How one cell reads, in every view that is for people."""

from __future__ import annotations

from graphmem.report import Cell, Column, Figure
from graphmem.units import MIB, format_bytes, format_count, format_share, format_short_count

NOTHING = "–"


def cell_text(value: Cell, column: Column) -> str:
    """A cell in its column's unit; an absent value is a dash, never a zero."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    if column.unit == "bytes":
        return f"{value / MIB:,.2f} MiB" if column.in_mib else format_bytes(value)
    if column.unit == "share":
        return format_share(value)
    return format_count(value)


def figure_text(figure: Figure) -> str:
    """A figure with its exact value and a rounded one: ``3,821,079,552 (3.82 B)``."""
    if figure.value is None or isinstance(figure.value, str):
        return figure.value or NOTHING
    if figure.unit == "bytes":
        return f"{format_bytes(figure.value)} ({format_count(figure.value)} bytes)"
    if figure.unit == "count":
        exact, short = format_count(figure.value), format_short_count(figure.value)
        return exact if exact == short else f"{exact} ({short})"
    return format_share(figure.value)
