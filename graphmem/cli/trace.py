"""``graphmem trace TARGET``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphmem.cli.options import (
    allocator_options,
    format_flags,
    output_options,
    workload_choices,
    workload_options,
)
from graphmem.cli.output import choose_format, write, write_bytes
from graphmem.cli.progress import working


@click.command("trace")
@click.argument("target")
@workload_options
@click.option("--device", help="Whose kernels: cuda (an A100), a100, h100 or cpu, memory without end.  [default: cuda]")
@allocator_options
@click.option("--no-fold", is_flag=True, help="Trace every layer, instead of a few of those that repeat.")
@click.option("--by", type=click.Choice(["op", "module", "layer", "line"]), help="Add a breakdown of the operations.")
@click.option("--top", type=click.IntRange(min=1), help="Rows of the breakdowns.  [default: 15]")
@output_options("an allocation or release", snapshot=True)
def command(
    target: str, device: str | None, gpu: str | None, memory: int | None, alloc_conf: str, no_fold: bool, by: Any, top: int | None,
    as_json: bool, as_csv: bool, as_markdown: bool, output: Path | None, quiet: bool, debug: bool, **workload: Any,
) -> None:  # fmt: skip
    """One step of a model, every allocation and release, on the meta device.

    TARGET is a model id, folder or config.json that transformers can build, or package.module:factory for any torch.nn.Module.
    The model's own code runs, without weights and without a GPU.

    \b
    graphmem trace openai-community/gpt2 --train --batch-size 4 --gpu "RTX 4090"
    graphmem trace microsoft/Phi-3-mini-128k-instruct --no-grad --seq-len 4096 --by layer
    graphmem trace mypackage.models:build --input "float32[8,3,224,224]" --train -o step.pickle
    """
    chosen = choose_format(format_flags(as_json, as_csv, as_markdown), output, snapshot=True)
    choices = workload_choices(**workload)
    with working("Tracing", quiet):
        from graphmem.tracing.targets import require_torch

        require_torch()
        from graphmem.api import trace
        from graphmem.tracing.factory import parse_inputs

        args, kwargs = parse_inputs(choices.pop("inputs"))
        traced = trace(
            target, *args, *([kwargs] if kwargs else []), device=device, gpu=gpu, memory=memory, alloc_conf=alloc_conf,
            fold=not no_fold, **choices,
        )  # fmt: skip
    if chosen == "snapshot":
        from graphmem.snapshots.write import snapshot_bytes

        write_bytes(snapshot_bytes(traced), output, quiet=quiet)
        return
    write(traced.report(by, top, events=chosen == "csv"), chosen, output, quiet=quiet, explain=False)
