"""Where a report goes: stdout or a file, in the format the flags or the file's extension name."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from graphmem.errors import GraphmemError
from graphmem.report import Report

_BY_EXTENSION = {".json": "json", ".csv": "csv", ".md": "markdown", ".txt": "text", ".html": "html"}
_SNAPSHOT = {".pickle": "snapshot"}
#: Without a terminal there is no width to fit; this suits files and logs.
_PIPE_WIDTH = 120


def choose_format(flags: list[str], output: Path | None, snapshot: bool = False) -> str:
    """The format (with ``snapshot`` also that: a memory snapshot for a ``.pickle``), with ``-o``'s extension and the flags in agreement, and the file known to be writable before any work.

    Raises:
        GraphmemError: an unknown extension, flags that disagree, or a file that cannot be written.
    """
    if len(flags) > 1:
        raise GraphmemError(f"--{flags[0]} and --{flags[1]} exclude each other; use one")
    flag = flags[0] if flags else None
    if output is None:
        return flag or "text"
    known = _BY_EXTENSION | (_SNAPSHOT if snapshot else {})
    named = known.get(output.suffix.lower())
    if named is None and flag is None:
        raise GraphmemError(f"-o {output}: the extension says the format; use one of {', '.join(known)}")
    if named and flag and named != flag:
        raise GraphmemError(f"-o {output} is {named} by its extension, but --{flag} asks for {flag}; drop one of them")
    writable("-o", output)
    return flag or named or "text"


def writable(option: str, output: Path) -> None:
    """Find out before any work whether a file can be written.

    Raises:
        GraphmemError: it cannot.
    """
    if output.is_dir() or not output.parent.is_dir():
        what = "is a folder" if output.is_dir() else f"the folder {output.parent} does not exist"
        raise GraphmemError(f"{option} {output}: {what}; name a file that can be written")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise GraphmemError(f"{option} {output}: cannot be written (permission denied); choose another place")


def render(report: Report, format: str, *, width: int | None, color: bool, explain: bool) -> str:
    """The report in ``format``."""
    if format == "json":
        from graphmem.views import json

        return json.render(report)
    if format == "csv":
        from graphmem.views import csv

        return csv.render(report)
    if format == "markdown":
        from graphmem.views import markdown

        return markdown.render(report, explain=explain)
    if format == "html":
        from graphmem.views import html

        return html.page(report)
    from graphmem.views import terminal

    return terminal.render(report, width=width or _PIPE_WIDTH, color=color, explain=explain)


def write(report: Report, format: str, output: Path | None, *, quiet: bool, explain: bool) -> None:
    """Print the report, or put it in ``output`` all at once: a reader never sees half a file."""
    if output is None:
        width, color = _terminal()
        _print(render(report, format, width=width, color=color, explain=explain))
        return
    write_bytes(render(report, format, width=None, color=False, explain=explain).encode(), output, quiet=quiet)


def write_bytes(content: bytes, output: Path | None, *, quiet: bool) -> None:
    """Put ``content`` in ``output``, all at once."""
    assert output is not None
    try:
        _put(content, output.resolve())  # a link keeps being a link; what it points to is replaced
    except OSError as error:
        raise GraphmemError(f"-o {output}: cannot be written ({error.strerror}); choose another place") from error
    if not quiet and sys.stderr is not None:
        print(f"graphmem: wrote {output}", file=sys.stderr)


def _put(content: bytes, path: Path) -> None:
    if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced, only written to
        path.write_bytes(content)
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _print(text: str) -> None:
    """Print, with what the terminal's encoding lacks replaced rather than failing."""
    if sys.stdout is None:
        raise GraphmemError("standard output is closed; use -o FILE")
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GraphmemError(f"standard output cannot be written ({error.strerror})") from error


def _terminal() -> tuple[int | None, bool]:
    """(columns, colour) of stdout: COLUMNS wins, NO_COLOR and dumb terminals switch colour off."""
    columns = os.environ.get("COLUMNS", "")
    terminal = sys.stdout is not None and sys.stdout.isatty()
    width = (
        int(columns)
        if columns.isdigit() and int(columns) > 0
        else (os.get_terminal_size().columns if terminal else None)
    )
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return width, color


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
