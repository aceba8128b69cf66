"""Options that commands share: where a model is read from, and where a report goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from graphmem.errors import GraphmemError
from graphmem.units import parse_bytes

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


class Bytes(click.ParamType[int]):
    """``24GiB``, ``80GB`` (10^9) or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


#: gpu, memory, alloc_conf
allocator_options: Callable[[_Command], _Command] = _all(
    click.option("--gpu", metavar="NAME", help="A GPU with its memory (A100-80GB, RTX 4090, T4): does the step fit, where does it die?"),
    click.option("--memory", type=Bytes(), metavar="SIZE", help="Of the device, CUDA context included: 23.5GiB.  [default: that of --gpu]"),
    click.option(
        "--alloc-conf", default="", metavar="SETTINGS",
        help="Of the caching allocator, as in PYTORCH_CUDA_ALLOC_CONF: expandable_segments:True,…",
    ),
)  # fmt: skip


#: What the step is: train, batch_size, seq_len, inputs, dtype, autocast, no_grad, optimizer, steps, attention, routing, trust_remote_code
#: and the source options.
workload_options: Callable[[_Command], _Command] = _all(
    click.option("--train", is_flag=True, help="A training step: zero_grad, forward, loss, backward, optimizer."),
    click.option("--batch-size", type=click.IntRange(min=1), help="For a model id.  [default: 1]"),
    click.option(
        "--seq-len",
        type=click.IntRange(min=1),
        help="Tokens, for a model id.  [default: 1024, or what the model takes]",
    ),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="TEXT",
        help='For package.module:factory: "int64[1,2048]", or "mask=bool[1,2048]".',
    ),
    click.option("--dtype", metavar="DTYPE", help="Of the weights.  [default: as stored]"),
    click.option("--autocast", metavar="DTYPE", help="torch.autocast around forward and loss: bfloat16 or float16."),
    click.option("--no-grad", is_flag=True, help="Forward under torch.no_grad()."),
    click.option("--optimizer", metavar="NAME", help="A class of torch.optim, with --train.  [default: AdamW]"),
    click.option(
        "--steps",
        type=click.IntRange(1, 100),
        default=1,
        show_default=True,
        help="Steps in a row; the first one creates optimizer state.",
    ),
    click.option(
        "--attention",
        type=click.Choice(["eager", "sdpa", "flash"]),
        help="For a model of transformers.  [default: the model's]",
    ),
    click.option(
        "--routing",
        type=click.Choice(["balanced", "worst"]),
        default="balanced",
        show_default=True,
        help="How tokens fall on experts.",
    ),
    click.option("--trust-remote-code", is_flag=True, help="Run the Python code in the model's repository."),
    source_options,
)


def workload_choices(
    *, train: bool, no_grad: bool, optimizer: str | None, inputs: tuple[str, ...], **rest: Any
) -> dict[str, Any]:
    """The workload options as `graphmem.trace` calls them; ``inputs`` still as text.

    Raises:
        GraphmemError: they exclude each other.
    """
    if train and no_grad:
        raise GraphmemError("--train needs gradients; drop --no-grad")
    if optimizer and not train:
        raise GraphmemError("--optimizer is for a training step; add --train")
    return {
        "step": "train" if train else "forward",
        "grad": not no_grad,
        "optimizer": optimizer,
        "inputs": list(inputs),
        **rest,
    }


def output_options(csv_rows: str, json_flag: bool = True, snapshot: bool = False) -> Callable[[_Command], _Command]:
    """as_json (unless the command has another use for ``--json``), as_csv, as_markdown, output, quiet, debug.

    ``csv_rows`` says what a row of the CSV is.
    """
    more = ", .pickle (a memory snapshot)" if snapshot else ""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON (bytes as integers).")
    return _all(
        *((as_json,) if json_flag else ()),
        click.option("--csv", "as_csv", is_flag=True, help=f"Print CSV, one row {csv_rows}."),
        click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown."),
        click.option(
            "-o", "output", metavar="FILE", type=click.Path(path_type=Path),
            help=f"Write FILE.json, .csv, .md, .txt{more} or .html instead of printing.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors."),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    )  # fmt: skip


def format_flags(as_json: bool, as_csv: bool, as_markdown: bool) -> list[str]:
    """The formats asked for by flag."""
    return [name for name, given in (("json", as_json), ("csv", as_csv), ("markdown", as_markdown)) if given]
