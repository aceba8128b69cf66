"""Truth 10: published memory of ranks of real multi-GPU runs, against PyTorch's engines traced and Megatron's formulas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from graphmem.units import GIB
from tests.accuracy import megatron_cases as megatron
from tests.accuracy.parallel_cases import NOT_COVERED, ParallelRow, rows


def _said(errors: Sequence[float]) -> str:
    absolute = [abs(error) for error in errors]
    return f"{len(errors)} rows; absolute error: median {median(absolute):.3%}, worst {max(absolute):.2%}"


def page() -> Iterator[str]:
    """The tables."""
    traced = list(rows())
    stated = [row.error for row in traced if not row.case.inferred]
    inferred = [row.error for row in traced if row.case.inferred]
    yield f"- PyTorch's own engines, traced, with the settings their sources state: {_said(stated)}."
    yield f"- The same where a setting was inferred, because only it meets the figure (it shows that such a run exists, not that we foresee it): {_said(inferred)}."
    if not megatron.CI.exists():
        yield "- Megatron: not run: the published rows are not beside this checkout."
        yield from _traced(traced)
        return
    golden = list(megatron.ci_results())
    for figure in ("steady", "peak"):
        for mixture in (False, True):
            found = [row for row in golden if row.figure == figure and row.mixture == mixture]
            what = "experts or MLA" if mixture else "dense"
            yield f"- Megatron-LM's CI, last rank, {figure} ({what}): {_said([row.error for row in found])}; within 1 %: {sum(abs(row.error) <= 0.01 for row in found)}."
        yield f"- Megatron-LM's CI, last rank, {figure}, all: {_said([row.error for row in golden if row.figure == figure])}."
    runs = list(megatron.b200_results())
    theirs = (
        median(abs(row.simulator or 0) / 100 for row in runs),
        sum(abs(row.simulator or 0) for row in runs) / 100 / len(runs),
    )
    ours = sum(abs(row.error) for row in runs) / len(runs)
    yield f"- 8 × B200, fullest rank: {_said([row.error for row in runs])}; mean {ours:.4%}. The best published simulator (SimuMax): median {theirs[0]:.2%}, mean {theirs[1]:.2%}."
    yield from _traced(traced)
    yield "\n### Megatron on 8 × B200, peak of the fullest rank, GiB\n\n| run | measured | predicted | error | SimuMax's error |\n|:--|--:|--:|--:|--:|"
    for row in runs:
        yield f"| {row.id} | {row.published / GIB:,.3f} | {row.predicted / GIB:,.3f} | {row.error:+.4%} | {row.simulator:+.2f} % |"
    yield "\n### Megatron-LM's golden values, last rank, MiB\n\n| case | figure | measured | predicted | error |\n|:--|:--|--:|--:|--:|"
    for row in golden:
        yield f"| {row.id} | {row.figure} | {row.published / 2**20:,.1f} | {row.predicted / 2**20:,.1f} | {row.error:+.2%} |"
    yield "\nRows of high confidence that are not modelled, by what asks for it:\n"
    yield from (f"- {reason}: {count}" for reason, count in megatron.left_out().items())


def _traced(found: Sequence[ParallelRow]) -> Iterator[str]:
    yield "\n### PyTorch's engines, GiB a rank\n\n| row | source | settings | metric | measured | predicted | error |\n|:--|:--|:--|:--|--:|--:|--:|"
    for row in found:
        case = row.case
        settings = case.settings + (f" (inferred: {case.inferred})" if case.inferred else "")
        yield f"| {case.name} | {case.source} | {settings} | {case.metric} | {case.measured / GIB:,.3f} | {row.predicted / GIB:,.3f} | {row.error:+.2%} |"
    yield "\nRows of these programs that are not held against:\n"
    yield from (f"- {name}: {reason}" for name, reason in NOT_COVERED.items())
