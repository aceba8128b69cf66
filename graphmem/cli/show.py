"""``graphmem show SNAPSHOT``."""

from __future__ import annotations

from pathlib import Path

import click

from graphmem.cli.options import format_flags, output_options
from graphmem.cli.output import choose_format, write
from graphmem.cli.progress import working


@click.command("show")
@click.argument("snapshot", type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=15, show_default=True, help="Rows of the table by line.")
@output_options("an event")
def command(
    snapshot: Path,
    top: int,
    as_json: bool,
    as_csv: bool,
    as_markdown: bool,
    output: Path | None,
    quiet: bool,
    debug: bool,
) -> None:
    """What a memory snapshot of PyTorch tells: peak, kinds, fragmentation, and what other allocator settings would reserve.

    SNAPSHOT is a file that torch.cuda.memory._dump_snapshot wrote. Nothing in it is executed.

    \b
    graphmem show snapshot.pickle
    graphmem show snapshot.pickle -o timeline.csv
    """
    chosen = choose_format(format_flags(as_json, as_csv, as_markdown), output)
    with working("Reading", quiet):
        from graphmem.api import show

        report = show(snapshot, top=top, events=chosen == "csv")
    write(report, chosen, output, quiet=quiet, explain=False)
