"""``graphmem inspect TARGET``."""

from __future__ import annotations

from pathlib import Path

import click

from graphmem.cli.output import choose_format, write
from graphmem.cli.progress import HeaderProgress


@click.command("inspect")
@click.argument("target")
@click.option("--depth", type=click.IntRange(min=1), help="Add the module tree to this many levels.")
@click.option("--tensors", is_flag=True, help="Add a table of every tensor.")
@click.option("--explain", is_flag=True, help="Show the arithmetic and the sources behind the figures.")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--token", help="Hub token; by default HF_TOKEN or the one `hf auth login` saved.")
@click.option("--offline", is_flag=True, help="Do not ask the Hub: use its cache or the built-in catalog.")
@click.option("--json", "format", flag_value="json", help="Print JSON (bytes as integers).")
@click.option("--csv", "format", flag_value="csv", help="Print CSV, one row a tensor.")
@click.option("--markdown", "format", flag_value="markdown", help="Print Markdown.")
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path),
    help="Write FILE.json, .csv, .md, .txt or .html instead of printing.",
)
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    target: str,
    depth: int | None,
    tensors: bool,
    explain: bool,
    revision: str | None,
    token: str | None,
    offline: bool,
    format: str | None,
    output: Path | None,
    quiet: bool,
    debug: bool,
) -> None:
    """What a checkpoint stores, by component, layer and dtype.

    TARGET is a Hub id (microsoft/Phi-3-mini-128k-instruct), one file of a Hub repository (owner/name/model-Q8_0.gguf), or a
    folder or file here (safetensors, GGUF, an index, a config.json, a diffusers pipeline, a PEFT adapter). Only headers and
    configs are read, never weights.
    """
    chosen = choose_format(format, output)
    from graphmem.api import inspect

    with HeaderProgress(quiet) as progress:
        report = inspect(
            target,
            revision=revision,
            token=token,
            offline=offline,
            depth=depth,
            tensors=tensors or chosen == "csv",
            progress=progress,
        )
    write(report, chosen, output, quiet=quiet, explain=explain)
