"""A part of the accuracy table that CI can afford: plain networks, forty architectures, one GPU snapshot a source, the formula.

`python -m tests.accuracy` runs all of it and writes docs/accuracy.md; `python -m tests.accuracy.sweep` runs every architecture.
"""

from __future__ import annotations

import pytest

from tests.accuracy import formula
from tests.accuracy.cpu import Case, compare
from tests.accuracy.representative import MISSES, REPRESENTATIVE, network_cases
from tests.accuracy.snapshot_cases import CASES, SnapshotCase
from tests.accuracy.snapshots import SNAPSHOTS
from tests.accuracy.sweep import measured

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("ignore::UserWarning")]


def _check(name: str, train: bool, error: float) -> None:
    if (name, train) in MISSES:
        assert abs(error) > 0.01, f"{name} is right now; take it off the list of misses"
    else:
        assert abs(error) <= 0.01


@pytest.mark.parametrize(
    "case", list(network_cases()), ids=lambda case: f"{case.name}-{'training' if case.train else 'inference'}"
)
def test_plain_networks_on_the_cpu(case: Case) -> None:
    _check(case.name, case.train, compare(case).error)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_architectures_on_the_cpu(name: str, train: bool) -> None:
    row = measured(name, train)
    assert not row.failure
    _check(name, train, row.error)


def _one_a_source() -> list[SnapshotCase]:
    """Of each source the last: full steps come last. Profiler timelines of cuDNN convolutions are in the table only."""
    chosen = {case.file.partition("__")[0]: case for case in CASES if "timeline" not in case.file}
    return list(chosen.values())


@pytest.mark.skipif(not SNAPSHOTS.exists(), reason="../shared/gpu_snapshots is not here")
@pytest.mark.parametrize("case", _one_a_source(), ids=lambda case: case.file.partition("__")[0])
def test_real_gpu_snapshots(case: SnapshotCase) -> None:
    from tests.accuracy.gpu import measure

    row = measure(case)
    assert row.events_matched >= 0.999
    assert abs(row.peak_error) <= 0.001
    assert row.comparison.predicted_rise == row.comparison.real_rise


def test_the_papers_formula_is_derived() -> None:
    assert formula.derived(flash=False).terms == {**formula.PAPER, **formula.STATISTICS}


def test_with_flash_attention_nothing_grows_with_the_square_of_the_sequence() -> None:
    terms = formula.derived(flash=True).terms
    assert max(powers[0] for powers in terms) == 1
    assert terms[1, 1, 1, 0] == 32 + 2  # what the paper counts without scores: 34·s·b·h


@pytest.mark.parametrize("name", ["pr165_fsdp2_ac_active", "pr822_default_later", "pr1881_fsdp2_4x2", "7b_lora_512"])
def test_published_memory_of_a_rank(name: str) -> None:
    """torchtitan's FSDP2 and tensor parallelism, FSDP with LoRA: figures of the runs' own logs."""
    from tests.accuracy.parallel_cases import CASES as RANKS
    from tests.accuracy.parallel_cases import measure

    (case,) = [case for case in RANKS if case.name == name]
    assert abs(measure(case).error) <= 0.005
