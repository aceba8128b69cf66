"""``python -m tests.accuracy``: traces against three truths, row by row; writes docs/accuracy.md.

The sweep over all of transformers is `python -m tests.accuracy.sweep`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.accuracy import formula
from tests.accuracy.representative import REPRESENTATIVE, network_cases
from tests.accuracy.sweep import Row, measured
from tests.accuracy.text import HEAD

DOCS = Path(__file__).parents[2] / "docs" / "accuracy.md"


def _cpu_rows() -> Iterator[Row]:
    from tests.accuracy.cpu import compare

    for case in network_cases():
        found = compare(case)
        yield Row(
            case.name, "plain torch.nn", case.train, found.measured, found.predicted, found.start, found.real_events,
            found.matched, found.first_difference,
        )  # fmt: skip
    for name in REPRESENTATIVE:
        for train in (False, True):
            yield measured(name, train)


def _cpu(rows: list[Row]) -> Iterator[str]:
    traced = [row for row in rows if not row.failure]
    within = {limit: sum(abs(row.error) <= limit for row in traced) for limit in (0.0, 0.01, 0.05)}
    yield f"{len(rows)} runs, {len(traced)} traced; peak exact in {within[0.0]}, within 1 % in {within[0.01]}, within 5 % in {within[0.05]}.\n"
    yield "| model | of | step | measured peak | predicted | error | events | equal in order | first difference |"
    yield "|:--|:--|:--|--:|--:|--:|--:|--:|:--|"
    for row in rows:
        step = "training" if row.train else "inference"
        if row.failure:
            yield f"| {row.name} | {row.model_type} | {step} | | | | | | {row.failure} |"
            continue
        difference = row.first_difference.replace("|", "/")
        yield (
            f"| {row.name} | {row.model_type} | {step} | {row.measured:,} | {row.predicted:,} | {row.error:+.2%} | {row.events:,} | "
            f"{row.matched / max(row.events, 1):.2%} | {difference} |"
        )


def _gpu() -> Iterator[str]:
    from tests.accuracy.gpu import measure
    from tests.accuracy.snapshot_cases import CASES, SKIPPED
    from tests.accuracy.snapshots import SNAPSHOTS

    if not SNAPSHOTS.exists():
        yield "Not run: the snapshots are not beside this checkout."
        return
    rows = [measure(case) for case in CASES]
    allocator = [row for row in rows if row.measured_peak]
    exact = sum(row.events_matched >= 0.999 for row in rows)
    yield (
        f"{len(rows)} snapshots from {len({row.source for row in rows})} sources. At least 99.9 % of events equal, in {exact} of them; peak within "
        f"0.1 % in {sum(abs(row.peak_error) <= 0.001 for row in allocator)} of {len(allocator)}, to the byte in "
        f"{sum(row.peak_error == 0 for row in allocator)}; rise over the start to the byte in "
        f"{sum(row.comparison.predicted_rise == row.comparison.real_rise for row in rows)} of {len(rows)}.\n"
    )
    yield "| snapshot | source | torch | GPU like | events | ours | equal in order | releases as sets | measured peak | predicted | error | rise |"
    yield "|:--|:--|:--|:--|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        c = row.comparison
        peak = f"{row.measured_peak:,} | {row.predicted_peak:,} | {row.peak_error:+.4%}" if row.measured_peak else "| |"
        name = row.case.name.partition("__")[2].partition("__")[2] + (" (script inferred)" if row.case.inferred else "")
        yield (
            f"| {name} | {row.source} | {row.case.torch} | {row.gpu} | {c.events:,} | {c.predicted_events:,} | {c.matched / c.events:.2%} | "
            f"{row.events_matched:.2%} | {peak} | {c.predicted_rise / max(c.real_rise, 1) - 1:+.4%} |"
        )
    yield "\nNot compared, though their settings are known:\n"
    yield from (f"- {file}: {reason}" for file, reason in SKIPPED.items())


def _formula() -> Iterator[str]:
    yield "| attention | stored activations of one layer, bytes |\n|:--|:--|"
    yield "| the paper, by hand | 34·s·b·h + 5·s²·b·a |"
    yield f"| unfused, derived | {formula.derived(flash=False)} |"
    yield f"| flash, derived | {formula.derived(flash=True)} |"


def main() -> None:
    """Run all three and write the page."""
    parts = [HEAD.format(torch=torch.__version__)]
    for title, rows in (
        ("## 1. CPU, event by event", lambda: _cpu(list(_cpu_rows()))),
        ("## 2. GPU events", _gpu),
        ("## 3. The paper's formula, derived", _formula),
    ):
        print(title, file=sys.stderr)
        parts += [f"\n{title}\n", *rows()]
    DOCS.write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
