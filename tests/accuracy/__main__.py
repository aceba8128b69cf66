"""``python -m tests.accuracy [SECTION …]``: traces against every truth, row by row; writes docs/accuracy.md.

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
from tests.accuracy.text import HEAD, INTRO

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


def _replays() -> Iterator[str]:
    from tests.accuracy.replays import rows
    from tests.accuracy.snapshots import SNAPSHOTS

    if not SNAPSHOTS.exists():
        yield "Not run: the snapshots are not beside this checkout."
        return
    found = list(rows())
    replayed = [row for row in found if row.replay is not None]
    with_events = [row for row in replayed if row.events]
    exact = [row for row in replayed if not row.difference]
    yield (
        f"{len(replayed)} snapshots replayed, {len(with_events)} of them with a history; exact: {len(exact)} of {len(replayed)}, "
        f"{len([row for row in with_events if not row.difference])} of {len(with_events)} with a history. "
        f"{sum(row.allocations for row in replayed):,} allocations at PyTorch's addresses, {sum(row.segment_events for row in replayed):,} segments "
        f"taken and given back in PyTorch's order. Not replayed: {len(found) - len(replayed)}, named at the end of the table.\n"
    )
    yield "| snapshot | source | torch | events | allocations | segments taken and given back | peak reserved | first difference |"
    yield "|:--|:--|:--|--:|--:|--:|--:|:--|"
    for row in sorted(found, key=lambda row: row.replay is None):
        name = row.file.partition("__")[2].partition("__")[2]
        yield (
            f"| {name} | {row.source} | {row.torch} | {row.events:,} | {row.allocations:,} | {row.segment_events:,} | {row.peak_reserved:,} | "
            f"{row.difference or 'none'} |"
        )


def _reserved() -> Iterator[str]:
    from tests.accuracy.reserved import rows
    from tests.accuracy.snapshots import SNAPSHOTS

    if not SNAPSHOTS.exists():
        yield "Not run: the snapshots are not beside this checkout."
        return
    found = list(rows())
    empty = [row for row in found if row.from_nothing]
    others = [row for row in found if not row.from_nothing]
    yield (
        f"From an empty allocator: {sum(row.error == 0 for row in empty)} of {len(empty)} to the byte. The other {len(others)} begin with memory in use, "
        f"which the script's own past explains only in part: {sum(row.error == 0 for row in others)} to the byte, "
        f"{sum(abs(row.error) <= 0.01 for row in others)} within 1 %.\n"
    )
    yield "| snapshot | begins with | reserved then | predicted | peak reserved | predicted | error |\n|:--|:--|--:|--:|--:|--:|--:|"
    for row in sorted(found, key=lambda row: not row.from_nothing):
        name = row.case.name.partition("__")[2].partition("__")[2]
        begins = "nothing" if row.from_nothing else "memory in use"
        yield f"| {name} | {begins} | {row.real_start:,} | {row.predicted_start:,} | {row.real:,} | {row.predicted:,} | {row.error:+.3%} |"


def _published() -> Iterator[str]:
    from tests.accuracy.published import rows, summary
    from tests.accuracy.published_cases import NOT_COVERED

    found = list(rows())
    for what, metrics in (("allocated", {"allocated"}), ("reserved or driver-level", {"reserved", "driver"})):
        some = [row for row in found if row.case.metric in metrics]
        middle, worst = summary(some)
        yield f"- {what}: {len(some)} rows; absolute error: median {middle:.2%}, worst {worst:.1%}."
    yield ""
    yield "| row | source | GPU | settings | metric | measured, MiB | allocated | reserved | context | predicted | error |"
    yield "|:--|:--|:--|:--|:--|--:|--:|--:|--:|--:|--:|"
    for row in found:
        case = row.case
        yield (
            f"| {case.name} | {case.source} | {case.gpu or 'not said'} | {case.settings} | {case.metric} | {case.measured / 2**20:,.0f} | "
            f"{row.allocated / 2**20:,.0f} | {row.reserved / 2**20:,.0f} | {row.context / 2**20:,.0f} | {row.predicted / 2**20:,.0f} | {row.error:+.1%} |"
        )
    yield "\nRows on one GPU that are not covered:\n"
    reasons: dict[str, list[str]] = {}
    for name, reason in NOT_COVERED.items():
        reasons.setdefault(reason, []).append(name)
    yield from (f"- {', '.join(names)}: {reason}" for reason, names in reasons.items())


def _operations() -> Iterator[str]:
    from tests.accuracy.op_cases import CASES

    yield "| row | operation | measured, MiB | predicted | difference |\n|:--|:--|--:|--:|--:|"
    for case in CASES:
        predicted = case.predicted()
        yield f"| {case.name} | {case.what} | {case.measured:,.4f} | {predicted:,.4f} | {predicted - case.measured:+.4f} |"


def _inference() -> Iterator[str]:
    from tests.accuracy.inference import page

    yield from page()


def _parallel() -> Iterator[str]:
    from tests.accuracy.parallel import page

    yield from page()


def _measurements() -> Iterator[str]:
    from tests.accuracy.measurements import rows

    yield "| measurement | device | torch | settings | measured peak | predicted | error | events | equal in order | measured reserved | predicted |"
    yield "|:--|:--|:--|:--|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows():
        real, about = row.row["real"], row.row
        settings = ", ".join(
            f"{key} {value}" for key, value in about["arguments"].items() if value not in (True, False)
        )
        head = f"| {row.name} | {about['device']['name']} | {about['versions']['torch']} | {about['target']}, {settings} | {real['peak']:,} | "
        if row.failure:
            yield head + f"{row.failure} | | | | | |"
            continue
        reserved = f"{real['reserved']:,} | {row.reserved:,}" if real["reserved"] is not None else "|"
        yield (
            head
            + f"{row.peak:,} | {row.error:+.3%} | {row.events:,} | {row.matched / max(row.events, 1):.2%} | {reserved} |"
        )


def main() -> None:
    """Run all of them and write the page; arguments name sections (their numbers) to run, the others are kept as they stand."""
    parts = [HEAD.format(torch=torch.__version__)]
    before = _sections(DOCS.read_text()) if DOCS.exists() else {}
    for title, rows in (
        ("## 1. CPU, event by event", lambda: _cpu(list(_cpu_rows()))),
        ("## 2. GPU events", _gpu),
        ("## 3. The paper's formula, derived", _formula),
        ("## 4. The allocator: real histories served again", _replays),
        ("## 5. Reserved memory from the model alone", _reserved),
        ("## 6. Published figures", _published),
        ("## 7. Measurements by `graphmem measure`", _measurements),
        ("## 8. Single operations", _operations),
        ("## 9. Inference and serving", _inference),
        ("## 10. Many GPUs", _parallel),
    ):
        if len(sys.argv) > 1 and title.split()[1].rstrip(".") not in sys.argv[1:] and title in before:
            parts.append(before[title])
            continue
        print(title, file=sys.stderr)
        parts += [f"\n{title}\n", *INTRO.get(title.split()[1], ()), *rows()]
    DOCS.write_text("\n".join(parts) + "\n")


def _sections(page: str) -> dict[str, str]:
    """Title → what stands there, title included."""
    found = [f"## {part}".rstrip("\n") for part in page.split("\n## ")[1:]]
    return {part.partition("\n")[0]: f"\n{part}" for part in found}


if __name__ == "__main__":
    main()
