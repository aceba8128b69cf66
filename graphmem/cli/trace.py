"""``graphmem trace TARGET``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphmem.cli.options import format_flags, output_options, source_options
from graphmem.cli.output import choose_format, write
from graphmem.cli.progress import working
from graphmem.errors import GraphmemError


@click.command("trace")
@click.argument("target")
@click.option("--train", is_flag=True, help="A training step: zero_grad, forward, loss, backward, optimizer.")
@click.option("--batch-size", type=click.IntRange(min=1), help="For a model id.  [default: 1]")
@click.option(
    "--seq-len", type=click.IntRange(min=1), help="Tokens, for a model id.  [default: 1024, or what the model takes]"
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="TEXT",
    help='For package.module:factory: "int64[1,2048]", or "mask=bool[1,2048]".',
)
@click.option("--dtype", metavar="DTYPE", help="Of the weights.  [default: as stored]")
@click.option("--autocast", metavar="DTYPE", help="torch.autocast around forward and loss: bfloat16 or float16.")
@click.option("--no-grad", is_flag=True, help="Forward under torch.no_grad().")
@click.option("--optimizer", metavar="NAME", help="A class of torch.optim, with --train.  [default: AdamW]")
@click.option(
    "--steps",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Steps in a row; the first one creates optimizer state.",
)
@click.option(
    "--attention",
    type=click.Choice(["eager", "sdpa", "flash"]),
    help="For a model of transformers.  [default: the model's]",
)
@click.option(
    "--routing",
    type=click.Choice(["balanced", "worst"]),
    default="balanced",
    show_default=True,
    help="How tokens fall on experts.",
)
@click.option("--device", default="cuda", show_default=True, help="cuda (an A100), a100, h100 or cpu.")
@click.option("--no-fold", is_flag=True, help="Trace every layer, instead of a few of those that repeat.")
@click.option("--by", type=click.Choice(["op", "module", "layer", "line"]), help="Add a breakdown of the operations.")
@click.option("--top", type=click.IntRange(min=1), help="Rows of the breakdowns.  [default: 15]")
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code in the model's repository.")
@source_options
@output_options("an allocation or release")
def command(
    target: str, train: bool, batch_size: int, seq_len: int | None, inputs: tuple[str, ...], dtype: str | None, autocast: str | None,
    no_grad: bool, optimizer: str | None, steps: int, attention: Any, routing: Any, device: str, no_fold: bool, by: Any, top: int | None,
    trust_remote_code: bool, revision: str | None, token: str | None, offline: bool, as_json: bool, as_csv: bool, as_markdown: bool,
    output: Path | None, quiet: bool, debug: bool,
) -> None:  # fmt: skip
    """One step of a model, every allocation and release, on the meta device.

    TARGET is a model id, folder or config.json that transformers can build, or package.module:factory for any torch.nn.Module.
    The model's own code runs, without weights and without a GPU.

    \b
    graphmem trace openai-community/gpt2 --train --batch-size 4
    graphmem trace microsoft/Phi-3-mini-128k-instruct --no-grad --seq-len 4096 --by layer
    graphmem trace mypackage.models:build --input "float32[8,3,224,224]" --train --by op
    """
    chosen = choose_format(format_flags(as_json, as_csv, as_markdown), output)
    if train and no_grad:
        raise GraphmemError("--train needs gradients; drop --no-grad")
    if optimizer and not train:
        raise GraphmemError("--optimizer is for a training step; add --train")
    with working("Tracing", quiet):
        from graphmem.tracing.targets import require_torch

        require_torch()
        from graphmem.api import trace
        from graphmem.tracing.factory import parse_inputs

        args, kwargs = parse_inputs(list(inputs))
        traced = trace(
            target, *args, *([kwargs] if kwargs else []), step="train" if train else "forward", grad=not no_grad,
            autocast=autocast, optimizer=optimizer, device=device, steps=steps, routing=routing,
            attention=attention, fold=not no_fold, batch_size=batch_size, seq_len=seq_len, dtype=dtype,
            trust_remote_code=trust_remote_code, revision=revision, token=token, offline=offline,
        )  # fmt: skip
    write(traced.report(by, top, events=chosen == "csv"), chosen, output, quiet=quiet, explain=False)
