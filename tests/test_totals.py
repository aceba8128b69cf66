"""Checkpoints built from their config against the byte totals their publishers recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.totals import REASONS, markdown, rows


def test_every_true_total_is_met_or_the_row_says_why(shared_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = rows(shared_models)
    with capsys.disabled():
        print("\n" + markdown(table))
    unexplained = [row for row in table if not row.exact and not row.reason]
    assert not unexplained
    # A reason given by hand must still be needed: a row that has become exact, or a folder that is gone, is to be removed.
    needed = {part for part in REASONS for row in table if part in row.name and not row.exact}
    assert needed == set(REASONS)
    # What can be built is exact: the others cannot be built (their own code, no model type) or are in REASONS.
    built = [row for row in table if row.counted is not None and not any(part in row.name for part in REASONS)]
    assert all(row.exact for row in built)
    assert len(built) >= 45
