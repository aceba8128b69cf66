"""Options that commands share: where a model is read from, and where a report goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _all(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def apply(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


#: revision, token, offline
source_options: Callable[[_Command], _Command] = _all(
    click.option("--revision", help="Branch, tag or commit on the Hub."),
    click.option("--token", help="Hub token; by default HF_TOKEN or the one `hf auth login` saved."),
    click.option("--offline", is_flag=True, help="Do not ask the Hub: use its cache or the built-in catalog."),
)


def output_options(csv_rows: str) -> Callable[[_Command], _Command]:
    """as_json, as_csv, as_markdown, output, quiet, debug; ``csv_rows`` says what a row of the CSV is."""
    return _all(
        click.option("--json", "as_json", is_flag=True, help="Print JSON (bytes as integers)."),
        click.option("--csv", "as_csv", is_flag=True, help=f"Print CSV, one row {csv_rows}."),
        click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown."),
        click.option(
            "-o", "output", metavar="FILE", type=click.Path(path_type=Path),
            help="Write FILE.json, .csv, .md, .txt or .html instead of printing.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    )  # fmt: skip


def format_flags(as_json: bool, as_csv: bool, as_markdown: bool) -> list[str]:
    """The formats asked for by flag."""
    return [name for name, given in (("json", as_json), ("csv", as_csv), ("markdown", as_markdown)) if given]
