"""``graphmem plan TARGET``."""

from __future__ import annotations

from pathlib import Path

import click

from graphmem.cli.options import format_flags, output_options, source_options
from graphmem.cli.output import choose_format, write
from graphmem.cli.progress import working


@click.command("plan")
@click.argument("target")
@click.option("--gpu", required=True, metavar="NAME", help="H100-80GB, B200, …")
@click.option("--gpus", type=click.IntRange(min=2), required=True, help="How many.")
@click.option("--global-batch", type=click.IntRange(min=1), required=True, help="Sequences of a step, over all GPUs.")
@click.option(
    "--seq-len", type=click.IntRange(min=1), help="Tokens of a sequence.  [default: 4096, or what the model takes]"
)
@click.option(
    "--engine",
    type=click.Choice(["torch", "megatron"]),
    default="megatron",
    show_default=True,
    help="torch: FSDP2 and DTensor, traced; megatron: by formula, pipelines and experts too.",
)
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Layouts to list.")
@source_options
@output_options("a layout")
def command(
    target: str, gpu: str, gpus: int, global_batch: int, seq_len: int | None, engine: str, top: int, revision: str | None, token: str | None, offline: bool,
    as_json: bool, as_csv: bool, as_markdown: bool, output: Path | None, quiet: bool, debug: bool,
) -> None:  # fmt: skip
    """Which layouts of a training run fit on so many GPUs, and which is the cheapest?

    \b
    graphmem plan meta-llama/Llama-3.1-70B --gpu H100-80GB --gpus 64 --global-batch 512
    graphmem plan meta-llama/Llama-3.1-8B --gpu A100-80GB --gpus 8 --global-batch 64 --engine torch
    """
    chosen = choose_format(format_flags(as_json, as_csv, as_markdown), output)
    with working("Planning", quiet) as progress:
        from graphmem.api import plan

        found = plan(
            target, gpu=gpu, gpus=gpus, global_batch=global_batch, seq_len=seq_len, engine=engine, top=top, revision=revision, token=token,
            offline=offline, progress=progress,
        )  # fmt: skip
    write(found.report(top), chosen, output, quiet=quiet, explain=False)
