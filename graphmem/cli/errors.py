"""What a failure looks like: one line on stderr, an exit code, and a traceback only for those who ask."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType

import click

from graphmem.errors import GraphmemError

EXIT_INTERNAL = 70  # EX_SOFTWARE
EXIT_INTERRUPTED = 130


class ErrorsInOneLine:
    """Context of a command: exits 2 for an error of the user's input, 70 for one of ours, 130 for Ctrl-C."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, SystemExit):
            return
        if "--debug" in sys.argv and not isinstance(error, click.ClickException):
            traceback.print_exception(error)
        if isinstance(error, BrokenPipeError):  # `graphmem inspect … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if isinstance(error, click.ClickException):
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, KeyboardInterrupt | click.Abort):
            print("graphmem: interrupted", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        if isinstance(error, GraphmemError):
            print(f"graphmem: {_one_line(error)}", file=sys.stderr)
            sys.exit(error.exit_code)
        print(
            f"graphmem: internal error, {type(error).__name__}: {_one_line(error)}; run again with --debug and report the traceback",
            file=sys.stderr,
        )
        sys.exit(EXIT_INTERNAL)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
