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
    click.option("--gpu", metavar="NAME", help="A GPU with its memory (A100-80GB, RTX 4090, T4): does it fit, and where does it run out?"),
    click.option("--memory", type=Bytes(), metavar="SIZE", help="Of the device, CUDA context included: 23.5GiB.  [default: that of --gpu]"),
    click.option(
        "--alloc-conf", default="", metavar="SETTINGS",
        help="Of the caching allocator, as in PYTORCH_CUDA_ALLOC_CONF: expandable_segments:True,…",
    ),
)  # fmt: skip


#: recipe, optimizer, optimizer_in_backward, accumulation, set_to_none, clip_norm, flat_buffers, checkpointing, save, offload, loss, compile,
#: steps, batch_size, seq_len, packed, inputs, attention, routing, trust_remote_code
training_options: Callable[[_Command], _Command] = _all(
    click.option("--batch-size", type=click.IntRange(min=1), help="Sequences of a micro-batch, for a model id.  [default: 1]"),
    click.option("--seq-len", type=click.IntRange(min=1), help="Tokens, for a model id.  [default: 1024 (--engine megatron: 4096), or what the model takes]"),
    click.option("--packing", "packed", is_flag=True, help="The batch's sequences in one row, each with positions from 0."),
    click.option("--input", "inputs", multiple=True, metavar="TEXT", help='For package.module:factory: "int64[1,2048]", or "mask=bool[1,2048]".'),
    click.option("--recipe", metavar="NAME", help="Precision: fp32, amp-bf16, amp-fp16, mixed, mixed-fp16, mixed-fp32-grads, bf16-fp32-states, bf16, fp16, bf16-adam8bit, fp8-torchao, fp8-te.  [default: weights as stored]"),
    click.option("--optimizer", metavar="NAME", help='A class of torch.optim with options, "SGD(momentum=0.9)"; bitsandbytes.AdamW8bit, GaLoreAdamW, …; or the Trainer\'s name, adamw_torch_fused.  [default: AdamW]'),
    click.option("--optimizer-in-backward", is_flag=True, help="Each parameter is updated as soon as its gradient is there."),
    click.option("--accumulation", type=click.IntRange(min=1), default=1, show_default=True, help="Micro-batches before each optimizer step."),
    click.option("--zero-gradients", "set_to_none", flag_value=False, default=True, help="zero_grad(set_to_none=False): gradients are kept and zeroed."),
    click.option("--clip-norm", type=float, metavar="NORM", help="Clip the norm of all gradients."),
    click.option("--flat-buffers", is_flag=True, help="fp32 gradients and master weights in one buffer each (mixed recipes)."),
    click.option("--checkpointing", metavar="WAY", help="model (its own), layers, every-K, sqrt, selective."),
    click.option("--save", multiple=True, metavar="OPERATOR", help="What selective checkpointing keeps: aten.mm.  [default: products and attention]"),
    click.option("--offload", is_flag=True, help="Saved activations in host memory."),
    click.option("--loss", type=click.Choice(["full", "chunked", "fused"]), default="full", show_default=True, help="Of a language model: all logits, or linear layer and cross-entropy in chunks (PyTorch's, or Liger's kernel)."),
    click.option("--compile", is_flag=True, help="torch.compile: what AOTAutograd's partitioner saves; see the documentation for what is not modelled."),
    click.option("--attention", type=click.Choice(["eager", "sdpa", "flash"]), help="For a model of transformers.  [default: the model's]"),
    click.option("--routing", type=click.Choice(["balanced", "worst"]), default="balanced", show_default=True, help="How tokens fall on experts."),
    click.option("--steps", type=click.IntRange(1, 100), default=2, show_default=True, help="Steps in a row; the first one creates optimizer state."),
    click.option("--trust-remote-code", is_flag=True, help="Run the Python code in the model's repository."),
)  # fmt: skip


class Ranks(click.ParamType[int]):
    """A number of ranks; without one, as many as the others leave over (0)."""

    name = "ranks"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is no number of ranks", param, ctx)
        if number < 0:
            self.fail(f"{number} is no number of ranks", param, ctx)
        return number


class Resharding(click.ParamType[int]):
    """``true``, ``false``, or a number of ranks."""

    name = "true|false|RANKS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        known = {"true": True, "false": False}
        if isinstance(value, str) and value.lower() in known:
            return known[value.lower()]
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r}: write true, false, or a number of ranks", param, ctx)


def _ranks(name: str, what: str) -> Callable[[_Command], _Command]:
    return click.option(f"--{name}", type=Ranks(), is_flag=False, flag_value="0", metavar="[RANKS]", help=what)


#: Names of the settings among `parallel_options`, as `graphmem.train` takes them in ``parallel``.
PARALLEL_SETTINGS = (
    "sequence_parallel", "loss_parallel", "reshard_after_forward", "param_dtype", "reduce_dtype", "cpu_offload", "bucket_cap_mb", "gradient_as_bucket_view",
    "schedule", "microbatches", "offload_optimizer", "offload_param", "reduce_bucket_size", "overlap_comm", "zero_hpz_partition_size",
    "zero_quantized_weights", "zero_quantized_gradients", "stage3_max_live_parameters", "gpus_per_node", "chunks", "etp",
    "use_distributed_optimizer", "cross_entropy_loss_fusion", "attention_backend",
)  # fmt: skip

#: engine, zero, gpus, dp, fsdp, tp, pp, cp, ep, and `PARALLEL_SETTINGS`
parallel_options: Callable[[_Command], _Command] = _all(
    click.option("--gpus", type=click.IntRange(min=1), help="How many. Sizes below multiply to it; one without a number takes what is left over."),
    click.option("--engine", type=click.Choice(["torch", "deepspeed", "megatron"]), help="What spreads it over GPUs: PyTorch's own, run for real; the others by formula.  [default: torch, or deepspeed with --zero]"),
    click.option("--zero", type=int, metavar="STAGE", help="DeepSpeed's ZeRO, stage 0 to 3, over the data-parallel ranks."),
    _ranks("dp", "Replicas: DDP; with --fsdp, replicas of its shards (HSDP)."),
    _ranks("fsdp", "Ranks that FSDP2 shards over."),
    _ranks("tp", "Tensor-parallel ranks."),
    _ranks("pp", "Pipeline stages."),
    _ranks("cp", "Ranks that share a sequence."),
    _ranks("ep", "Ranks that share the experts; within the data-parallel ones."),
    click.option("--sequence-parallel", is_flag=True, default=None, help="With --tp: activations between its layers are sharded over the sequence."),
    click.option("--loss-parallel", is_flag=True, default=None, help="With --tp: logits stay split over the vocabulary, and so does the loss."),
    click.option("--reshard-after-forward", type=Resharding(), help="Of fully_shard.  [default: true]"),
    click.option("--param-dtype", metavar="DTYPE", help="Of FSDP2's MixedPrecisionPolicy: what is gathered and computed in."),
    click.option("--reduce-dtype", metavar="DTYPE", help="Of FSDP2's MixedPrecisionPolicy: what gradients are reduced in."),
    click.option("--cpu-offload", is_flag=True, default=None, help="FSDP2's CPUOffloadPolicy: shards and optimizer states in host memory."),
    click.option("--bucket-cap-mb", type=float, help="Of DDP.  [default: 25]"),
    click.option("--gradient-as-bucket-view", is_flag=True, default=None, help="Of DDP: gradients lie in the buckets."),
    click.option("--offload-optimizer", metavar="cpu|nvme", help="Of ZeRO: optimizer states in host memory or on NVMe."),
    click.option("--offload-param", metavar="cpu|nvme", help="Of ZeRO-3: parameters in host memory or on NVMe."),
    click.option("--reduce-bucket-size", type=click.IntRange(min=1), metavar="ELEMENTS", help="Of ZeRO.  [default: 500000000]"),
    click.option("--overlap-comm/--no-overlap-comm", default=None, help="Of ZeRO.  [default: in stage 3 only]"),
    click.option("--stage3-max-live-parameters", type=click.IntRange(min=1), metavar="ELEMENTS", help="Of ZeRO-3.  [default: 1000000000]"),
    click.option("--zero-hpz-partition-size", type=click.IntRange(min=1), metavar="RANKS", help="Of ZeRO++: a second copy of parameters within a node."),
    click.option("--zero-quantized-weights", is_flag=True, default=None, help="Of ZeRO++: all-gathers in int8."),
    click.option("--zero-quantized-gradients", is_flag=True, default=None, help="Of ZeRO++: gradients reduced in int4."),
    click.option("--gpus-per-node", type=click.IntRange(min=1), help="For host memory.  [default: 8]"),
    click.option("--chunks", type=click.IntRange(min=1), help="Of Megatron's interleaved schedule: model chunks of a pipeline rank."),
    click.option("--etp", type=click.IntRange(min=1), help="Of Megatron: tensor-parallel ranks of experts.  [default: --tp]"),
    click.option("--distributed-optimizer/--no-distributed-optimizer", "use_distributed_optimizer", default=None, help="Of Megatron.  [default: distributed]"),
    click.option("--cross-entropy-loss-fusion", type=click.Choice(["te", "native"]), help="Of Megatron.  [default: none]"),
    click.option("--attention-backend", type=click.Choice(["fused", "flash", "unfused", "local"]), help="Of Megatron.  [default: fused]"),
    click.option("--schedule", metavar="NAME", help="Of the pipeline: GPipe, 1F1B, Interleaved1F1B, ….  [default: 1F1B]"),
    click.option("--microbatches", type=click.IntRange(min=1), help="Of the pipeline, a step; the batch is split into them.  [default: stages]"),
)  # fmt: skip


#: adapter, rank, alpha, target_modules, adapter_dropout, rslora, virtual_tokens, load_in
adapter_options: Callable[[_Command], _Command] = _all(
    click.option("--adapter", metavar="METHOD", help="By peft: lora, dora, ia3, prompt, prefix, p-tuning. All else is frozen."),
    click.option("--rank", type=int, help="Of lora and dora.  [default: 8]"),
    click.option("--alpha", type=int, help="Of lora and dora.  [default: the rank]"),
    click.option("--target-modules", metavar="NAMES", help="q_proj,v_proj or all-linear.  [default: peft's for the model]"),
    click.option("--adapter-dropout", type=float, help="Of lora and dora.  [default: 0]"),
    click.option("--rslora", is_flag=True, help="Rank-stabilized scaling."),
    click.option("--virtual-tokens", type=int, help="Of prompt, prefix and p-tuning.  [default: 20]"),
    click.option("--load-in", metavar="SCHEME", help="Frozen weights quantized as bitsandbytes stores them: nf4, nf4-double, int8 (with --adapter)."),
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
