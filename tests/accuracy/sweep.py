"""``python -m tests.accuracy.sweep``: every class of every Auto mapping of transformers, a real run on the CPU against its trace.

It takes about an hour on two cores. Rows go to a file as they are made (a run that was cut goes on where it stopped), and the
summary with every miss to docs/accuracy-sweep.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "accuracy-sweep.md"


@dataclass(frozen=True)
class Row:
    """One class and step. Bytes include what is there before the step; ``failure`` is why there is no prediction."""

    name: str
    model_type: str
    train: bool
    measured: int = 0
    predicted: int = 0
    start: int = 0
    events: int = 0
    matched: int = 0
    first_difference: str = ""
    failure: str = ""

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1 if self.measured else float("inf")


def measured(name: str, train: bool) -> Row:
    """Run one class for real and trace it. Anything that fails is the row's text."""
    import torch
    import transformers

    from tests.accuracy.architectures import architectures, build, inputs, loss
    from tests.accuracy.cpu import Case, compare

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    arch = next(arch for arch in architectures() if arch.name == name)
    try:
        module = build(arch).train(train)
        kwargs = inputs(arch, module, labels=train)
        found = compare(Case(name, module, (), kwargs, loss, train))
    except BaseException as error:
        return Row(
            name, arch.model_type, train, failure=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
    return Row(
        name, arch.model_type, train, found.measured, found.predicted, found.start, found.real_events, found.matched,
        found.first_difference,
    )  # fmt: skip


def _batch(work: list[tuple[str, bool]]) -> list[Row]:
    return [measured(name, train) for name, train in work]


def run(names: list[str], into: Path, jobs: int, minutes: float) -> list[Row]:
    """All rows of ``names``, those in ``into`` already among them."""
    have = {(row.name, row.train): row for row in read(into)} if into.exists() else {}
    todo = [(name, train) for name in names for train in (False, True) if (name, train) not in have]
    random.Random(0).shuffle(todo)  # a run that is cut has seen a fair sample
    batches = [todo[i : i + 8] for i in range(0, len(todo), 8)]
    started = time.monotonic()
    # What models leave behind is never collected while steps are recorded, so workers are replaced before they grow.
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=8) as pool, into.open("a") as file:
        for number, rows in enumerate(pool.imap_unordered(_batch, batches), 1):
            for row in rows:
                have[row.name, row.train] = row
                file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            spent = time.monotonic() - started
            left = spent / number * (len(batches) - number)
            print(f"\r{number * 8} of {len(todo)} runs, {left / 60:.0f} minutes left   ", end="", file=sys.stderr)
            if spent > minutes * 60:
                break
    return [have[name, train] for name in names for train in (False, True) if (name, train) in have]


def read(path: Path) -> list[Row]:
    """The rows of a file."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def page(rows: list[Row], classes: int, unrunnable: dict[str, str]) -> Iterator[str]:
    """docs/accuracy-sweep.md."""
    traced = [row for row in rows if not row.failure]
    within = {limit: sum(abs(row.error) <= limit for row in traced) for limit in (0.0, 0.001, 0.01, 0.05)}
    events, matched = sum(row.events for row in traced), sum(row.matched for row in traced)
    yield "# Accuracy: the sweep over transformers\n"
    yield (
        "`python -m tests.accuracy.sweep` writes this page. Every class that an Auto mapping of transformers lists is built tiny, run for\n"
        "real on the CPU under `torch.profiler` (forward in eval mode without grad; forward and backward in training mode), and traced with\n"
        "the `cpu` rules. The peak includes parameters, buffers and inputs. Models this small have activations of kilobytes, so that what\n"
        "kernels take beside their outputs weighs far more here than in models people train.\n"
    )
    yield f"- classes: {classes} that run for real here; {len(unrunnable)} do not (listed below)"
    yield f"- runs, one for each step of a class: {len(rows)} of {2 * classes} in this sweep (in random order); traced: {len(traced)}; not traced: {len(rows) - len(traced)}"
    for limit, count in within.items():
        yield f"- peak {'exact' if limit == 0 else f'within {limit:.1%}'}: {count} ({count / max(len(traced), 1):.2%})"
    yield f"- events equal in order and bytes: {matched:,} of {events:,} ({matched / max(events, 1):.2%})\n"
    yield "## Not traced\n"
    yield "| class | step | error |\n|:--|:--|:--|"
    yield from (f"| {r.name} | {_step(r)} | {r.failure.replace('|', '/')} |" for r in rows if r.failure)
    yield "\n## Peak off by more than 1 %\n"
    yield "| class | step | measured | predicted | error | first difference |\n|:--|:--|--:|--:|--:|:--|"
    for row in sorted((row for row in traced if abs(row.error) > 0.01), key=lambda row: -abs(row.error)):
        yield (
            f"| {row.name} | {_step(row)} | {row.measured:,} | {row.predicted:,} | {row.error:+.2%} | {row.first_difference.replace('|', '/')} |"
        )
    yield "\n## Do not run here\n\n| class | reason |\n|:--|:--|"
    yield from (
        f"| {name} | {' '.join(reason.split())[:200].replace('|', '/')} |"
        for name, reason in sorted(unrunnable.items())
    )


def _step(row: Row) -> str:
    return "training" if row.train else "inference"


def main() -> None:
    """Run what was asked for; write the page after a full sweep."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.sweep", description=__doc__)
    parser.add_argument("names", nargs="*", help="classes; by default all, and then the page is written")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600, help="stop after so long; the page says how much was run")
    parser.add_argument("--rows", type=Path, default=Path("sweep.jsonl"), help="where rows are kept")
    options = parser.parse_args()
    from tests.accuracy.architectures import runnable, unrunnable

    names = options.names or [arch.name for arch in runnable()]
    rows = run(names, options.rows, options.jobs, options.minutes)
    text = "\n".join(page(rows, len(names), {entry.name: entry.reason for entry in unrunnable()}))
    if options.names:
        print(text)
    else:
        DOCS.write_text(text + "\n")


if __name__ == "__main__":
    main()
