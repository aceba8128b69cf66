"""``graphmem measure TARGET``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from graphmem.cli.options import format_flags, output_options, workload_choices, workload_options
from graphmem.cli.output import choose_format, writable, write, write_bytes
from graphmem.cli.progress import working


@click.command("measure")
@click.argument("target")
@workload_options
@click.option(
    "--device", type=click.Choice(["cuda", "cpu"]), help="Where to run.  [default: cuda if there is one, else cpu]"
)
@click.option(
    "--alloc-conf", default="", metavar="SETTINGS", help="Of the caching allocator: expandable_segments:True,…"
)
@click.option(
    "--json", "row", metavar="FILE", type=click.Path(path_type=Path),
    help="Also write a row fit for fixtures/measurements.",
)  # fmt: skip
@output_options("a figure", json_flag=False)
def command(
    target: str, device: str | None, alloc_conf: str, row: Path | None,
    as_csv: bool, as_markdown: bool, output: Path | None, quiet: bool, debug: bool, **workload: Any,
) -> None:  # fmt: skip
    """Run a workload for real, with random weights, and hold it against the prediction.

    TARGET and the options are those of `graphmem trace`. Nothing is downloaded but a config.

    \b
    graphmem measure openai-community/gpt2 --train --batch-size 4
    graphmem measure mypackage.models:build --input "float32[8,3,224,224]" --train --json mine.json
    """
    chosen = choose_format(format_flags(False, as_csv, as_markdown), output)
    if row is not None:
        writable("--json", row)
    choices = workload_choices(**workload)
    # Both libraries write to stderr whatever happens; they look at these when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if alloc_conf:  # PyTorch reads them when it first uses the device
        os.environ.update(PYTORCH_ALLOC_CONF=alloc_conf, PYTORCH_CUDA_ALLOC_CONF=alloc_conf)
    with working("Measuring", quiet):
        from graphmem.tracing.targets import require_torch

        require_torch()
        from graphmem.api import measure
        from graphmem.measuring.report import report
        from graphmem.tracing.factory import parse_inputs

        args, kwargs = parse_inputs(choices.pop("inputs"))
        found = measure(target, *args, *([kwargs] if kwargs else []), device=device, alloc_conf=alloc_conf, **choices)
    if row is not None:
        write_bytes((json.dumps(found.row()) + "\n").encode(), row, quiet=quiet)
    write(report(found), chosen, output, quiet=quiet, explain=False)
