"""The bar is for people at a terminal who wait."""

from __future__ import annotations

import io
import sys

import pytest

from graphmem.cli.progress import HeaderProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("quiet", "total", "stream", "shown"),
    [
        (False, 163, Terminal(), True),
        (True, 163, Terminal(), False),
        (False, 3, Terminal(), False),
        (False, 163, io.StringIO(), False),
    ],
)
def test_shown_when_it_helps(
    quiet: bool, total: int, stream: io.StringIO, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with HeaderProgress(quiet) as progress:
        for done in range(total):
            progress(done + 1, total)
    assert ("Reading headers" in stream.getvalue()) is shown
