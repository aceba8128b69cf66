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
@click.option("--json", "as_json", is_flag=True, help="Print JSON (bytes as integers).")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, one row a tensor.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown.")
@click.option(
    "-o",
    "output",
    metavar="FILE",
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
    as_json: bool,
    as_csv: bool,
    as_markdown: bool,
    output: Path | None,
    quiet: bool,
    debug: bool,
) -> None:
    """What a checkpoint stores, by component, layer and dtype.

    TARGET is a Hub id (microsoft/Phi-3-mini-128k-instruct), one file of a Hub repository (owner/name/model-Q8_0.gguf), or a
    folder or file here (safetensors, GGUF, an index, a config.json, a diffusers pipeline, a PEFT adapter). Only headers and
    configs are read, never weights.

    \b
    graphmem inspect openai/gpt-oss-20b
    graphmem inspect ./checkpoint --depth 3 -o report.md
    graphmem inspect owner/name --json | jq '.sections[0].figures.parameters.value'
    """
    flags = [name for name, given in (("json", as_json), ("csv", as_csv), ("markdown", as_markdown)) if given]
    chosen = choose_format(flags, output)
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
