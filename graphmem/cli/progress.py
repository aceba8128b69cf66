"""What a terminal's stderr shows while work lasts: a bar over many headers, a word while a model is traced; nothing in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

#: Fewer reads than this are over before a bar could be seen.
_WORTH_A_BAR = 8


class HeaderProgress:
    """Callable with (done, total); draws with rich once there is enough to draw."""

    def __init__(self, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        if not self._shown or total < _WORTH_A_BAR:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("Reading headers", total=total)
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> HeaderProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def working(what: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A spinner with ``what`` beside it, for work that has no count; call what is given to say what it is at."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as status:
        yield lambda step: status.update(f"{what}: {step}")
