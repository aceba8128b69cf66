"""A Measurement as a Report: ``graphmem measure``."""

from __future__ import annotations

from graphmem.measuring.measurement import Measurement
from graphmem.report import Column, Figure, Report, Row, Section, Table


def report(found: Measurement) -> Report:
    """Predicted beside measured, how many events are equal, and where the first differs."""
    real, ours = found.real, found.predicted
    rows: list[Row] = [_row("before the step", ours.start, real.start)] if real.start else []
    rows.append(_row("peak allocated", ours.peak, real.peak))
    if real.reserved is not None and ours.reserved is not None:
        rows.append(_row("peak reserved", ours.reserved, real.reserved))
    if real.driver is not None:
        expected = None if ours.driver is None else sum(ours.driver) // 2
        rows.append(_row("device in use (nvidia-smi)", expected, real.driver[1]))
    columns = (
        Column("figure", "Figure"), Column("predicted", "Predicted", "bytes"), Column("measured", "Measured", "bytes"),
        Column("error", "Error", "share"),
    )  # fmt: skip
    table = Table("measured", "Predicted and measured", columns, tuple(rows), "traced")
    warnings = [f"the run ended with: {real.out_of_memory}"] if real.out_of_memory else []
    if ours.out_of_memory and not real.out_of_memory:
        warnings.append(f"predicted, and not so: {ours.out_of_memory}")
    notes = list(found.notes)
    if found.device["type"] == "cpu":
        notes.append(
            "measured on the CPU, on one thread: no reserved memory, no CUDA context; on a machine with a GPU this measures the GPU"
        )
    origin = f"measured on {found.device['name']}, torch {found.versions['torch']}"
    return Report(
        "measure", found.target, origin, (Section("", _figures(found), (table,)),), tuple(notes), tuple(warnings)
    )


def _figures(found: Measurement) -> tuple[Figure, ...]:
    events, matched = len(found.real.events), found.matched
    share = matched / events if events else 1.0
    figures = [
        Figure("events", "Events measured", events, "count", "read", "allocations and releases"),
        Figure("events_predicted", "Events predicted", len(found.predicted.events), "count", "traced"),
        Figure("matched", "Equal in order", matched, "count", "traced", f"{share:.2%} of those measured"),
    ]
    differs = found.first_difference
    said = "none"
    if differs is not None:
        said = (
            f"event {differs.index}: measured {_said(differs.real, differs.real_place)}, "
            f"predicted {_said(differs.predicted, differs.predicted_place)}"
        )
    return (*figures, Figure("first_difference", "First difference", said, "text", "traced"))


def _said(nbytes: int, place: str) -> str:
    if nbytes == 0:
        return "nothing more"
    what = f"{abs(nbytes):,} bytes {'allocated' if nbytes > 0 else 'released'}"
    return f"{what} in {place}" if place else what


def _row(figure: str, predicted: int | None, measured: int) -> Row:
    error = predicted / measured - 1 if predicted is not None and measured else None
    return figure, predicted, measured, error
