"""Truth 9: published weights, KV pools, peaks and totals of inference against `graphmem infer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import median

from graphmem.units import GIB
from tests.accuracy.inference_cases import CASES, UNCITED_KV, UNCITED_WEIGHTS, Case, Kind


@dataclass(frozen=True)
class Row:
    case: Case
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.case.measured - 1

    @property
    def exact(self) -> bool:
        """Whether the figure is met within the last digit printed (and a block)."""
        return abs(self.predicted - self.case.measured) <= self.case.printed + 1


@cache
def rows() -> tuple[Row, ...]:
    """All of them."""
    return tuple(Row(case, case.predict()) for case in CASES)


def of_kind(kind: Kind) -> list[Row]:
    return [row for row in rows() if row.case.kind == kind]


def summary(found: list[Row]) -> tuple[float, float]:
    """(median, worst) of the absolute errors."""
    errors = [abs(row.error) for row in found]
    return median(errors), max(errors)


@cache
def uncited() -> tuple[tuple[float, float], tuple[float, float]]:
    """(median, worst) of rows without a repository to cite: of weights, of KV pools."""
    weights = [abs(predict().weights.total / GIB / measured - 1) for measured, predict in UNCITED_WEIGHTS]
    pools = [abs(predict().available / GIB / measured - 1) for measured, predict in UNCITED_KV]
    return (median(weights), max(weights)), (median(pools), max(pools))


TITLES: dict[Kind, str] = {
    "weights": "vLLM: weights as loaded, GiB", "available": "vLLM: memory available for the KV cache, GiB", "overhead": "vLLM: activations and other memory beside weights, GiB",
    "blocks": "vLLM: blocks that a stated KV budget holds", "peak": "transformers: peak of prefill or decode, GiB", "steady": "transformers: allocated when generation is over, GiB",
    "driver": "vLLM: the process as nvidia-smi shows it, GiB",
}  # fmt: skip


def page() -> Iterator[str]:
    """The tables."""
    from tests.accuracy.inference_cases import NOT_COVERED

    for kind, title in TITLES.items():
        found = of_kind(kind)
        middle, worst = summary(found)
        exact = f"; exact to what is printed: {sum(row.exact for row in found)}" if kind in ("blocks", "peak") else ""
        yield f"- {title}: {len(found)} rows; absolute error: median {middle:.2%}, worst {worst:.1%}{exact}."
    (middle, worst), (pool_middle, pool_worst) = uncited()
    yield (
        f"- Rows whose publisher is not on record, held against and not printed: weights {len(UNCITED_WEIGHTS)}, median {middle:.2%}, worst {worst:.1%}; "
        f"KV pools {len(UNCITED_KV)}, median {pool_middle:.1%}, worst {pool_worst:.1%}."
    )
    for kind, title in TITLES.items():
        scale = 1 if kind == "blocks" else GIB
        yield f"\n### {title}\n\n| row | source | settings | measured | predicted | error |\n|:--|:--|:--|--:|--:|--:|"
        for row in of_kind(kind):
            digits = 0 if kind == "blocks" else 3
            yield (
                f"| {row.case.name} | {row.case.source} | {row.case.settings} | {row.case.measured / scale:,.{digits}f} | {row.predicted / scale:,.{digits}f} | {row.error:+.2%} |"
            )
    yield "\nNot covered:\n"
    yield from (f"- {name}: {reason}" for name, reason in NOT_COVERED.items())
