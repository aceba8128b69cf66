"""``graphmem train TARGET``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from graphmem.cli.options import (
    PARALLEL_SETTINGS,
    adapter_options,
    allocator_options,
    format_flags,
    output_options,
    parallel_options,
    source_options,
    training_options,
)
from graphmem.cli.output import choose_format, write, write_bytes
from graphmem.cli.progress import working
from graphmem.errors import GraphmemError


@click.command("train")
@click.argument("target")
@training_options
@adapter_options
@parallel_options
@allocator_options
@click.option("--fits", "check", is_flag=True, help="Exit with 0 if it fits on --gpu, with 1 if not.")
@click.option("--compare-rules", is_flag=True, help="Set rules of thumb beside it, with their error.")
@click.option(
    "--by",
    type=click.Choice(["module", "layer", "op", "line", "precision"]),
    help="Add a breakdown; precision traces the step under other recipes too.",
)
@click.option("--top", type=click.IntRange(min=1), help="Rows of the breakdowns.  [default: 15]")
@click.option("--no-fold", is_flag=True, help="Trace every layer, instead of a few of those that repeat.")
@source_options
@output_options("a stage of the step", snapshot=True)
def command(
    target: str, check: bool, compare_rules: bool, by: str | None, top: int | None, no_fold: bool, as_json: bool, as_csv: bool,
    as_markdown: bool, output: Path | None, quiet: bool, debug: bool, inputs: tuple[str, ...], gpu: str | None, memory: int | None, **given: Any,
) -> None:  # fmt: skip
    """Will this training run fit, where does its memory go, and what would change it?

    TARGET is a model id, folder or config.json that transformers can build, or package.module:factory for any torch.nn.Module.
    The model's own code, the real optimizer and peft run on the meta device, without weights and without a GPU.

    \b
    graphmem train openai-community/gpt2 --batch-size 8 --recipe amp-bf16 --gpu "RTX 4090"
    graphmem train microsoft/Phi-3-mini-128k-instruct --recipe bf16 --checkpointing layers --optimizer adamw_bnb_8bit
    graphmem train meta-llama/Llama-3.1-8B --gpus 8 --fsdp --param-dtype bfloat16 --checkpointing layers --gpu H100
    graphmem train meta-llama/Llama-3.1-8B --adapter lora --rank 16 --load-in nf4 --seq-len 2048 --gpu T4 --fits
    """  # fmt: skip
    chosen = choose_format(format_flags(as_json, as_csv, as_markdown), output, snapshot=True)
    if check and gpu is None and memory is None:
        raise GraphmemError("--fits needs a GPU to fit on; add --gpu NAME or --memory SIZE")
    if chosen == "snapshot" and given["zero"] is not None:
        raise GraphmemError("zero: states are partitioned by formula: there is no snapshot of a rank; use -o FILE.json")
    # DDP's logger has no clock for the meta device, and says so; read when torch is first imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with working("Tracing", quiet):
        from graphmem.tracing.targets import require_torch

        require_torch()
        from graphmem.api import train
        from graphmem.tracing.factory import parse_inputs

        args, kwargs = parse_inputs(list(inputs))
        given["parallel"] = {name: given.pop(name) for name in PARALLEL_SETTINGS}
        run = train(target, *args, *([kwargs] if kwargs else []), gpu=gpu, memory=memory, fold=not no_fold, **given)
        trace: Any = getattr(run, "trace", None)
        if chosen == "snapshot" and trace is None:
            raise GraphmemError(
                "engine 'megatron' is by formula: there are no allocations to write as a snapshot; use -o FILE.json"
            )
        found = run.report(by, top, compare_rules) if chosen != "snapshot" else None
    if found is None:
        from graphmem.snapshots.write import snapshot_bytes

        write_bytes(snapshot_bytes(trace), output, quiet=quiet)
    else:
        write(found, chosen, output, quiet=quiet, explain=False)
    if check and not run.fits:
        raise click.exceptions.Exit(1)
