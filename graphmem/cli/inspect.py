"""``graphmem inspect TARGET``."""

from __future__ import annotations

from pathlib import Path

import click

from graphmem.cli.options import format_flags, output_options, source_options
from graphmem.cli.output import choose_format, write
from graphmem.cli.progress import HeaderProgress


@click.command("inspect")
@click.argument("target")
@click.option("--depth", type=click.IntRange(min=1), help="Add the module tree to this many levels.")
@click.option("--tensors", is_flag=True, help="Add a table of every tensor.")
@click.option("--explain", is_flag=True, help="Show the arithmetic and the sources behind the figures.")
@source_options
@output_options("a tensor")
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
    chosen = choose_format(format_flags(as_json, as_csv, as_markdown), output)
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
