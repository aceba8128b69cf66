"""``graphmem infer TARGET``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphmem.cli.options import allocator_options, format_flags, output_options, source_options
from graphmem.cli.output import choose_format, write
from graphmem.cli.progress import working
from graphmem.engines.choose import ENGINES
from graphmem.errors import GraphmemError

#: Options of each engine, in its own words; an option that was not given is None, so that the engine's default holds.
_OPTIONS = (
    # transformers
    click.option("--prompt", type=int, help="transformers: tokens of the prompt.  [default: 1024]"),
    click.option("--new-tokens", type=int, help="transformers: max_new_tokens.  [default: 128]"),
    click.option("--batch-size", type=int, help="transformers: prompts at once.  [default: 1]"),
    click.option("--beams", type=int, help="transformers: num_beams.  [default: 1]"),
    click.option("--samples", type=int, help="transformers: num_return_sequences.  [default: 1]"),
    click.option("--cache", metavar="NAME", help="transformers: dynamic, static, offloaded, offloaded-static, fp8, quanto-int4, quanto-int2, hqq-int8, hqq-int4, hqq-int2.  [default: dynamic]"),
    click.option("--load-in", metavar="SCHEME", help="transformers: weights quantized by bitsandbytes: nf4, nf4-double, int8."),
    click.option("--attention", type=click.Choice(["eager", "sdpa", "flash"]), help="transformers.  [default: the model's]"),
    click.option("--dtype", metavar="DTYPE", help="transformers, vllm: of the weights.  [default: as stored]"),
    click.option("--all-logits", is_flag=True, default=None, help="transformers: prefill makes logits of the whole prompt; llama.cpp: of a whole micro-batch, as before 2026."),
    # vLLM
    click.option("--vllm-version", "version", metavar="VERSION", help="vllm: its defaults and accounting: 0.4 to 0.33.  [default: 0.33.0]"),
    click.option("--usage", type=click.Choice(["server", "llm"]), help="vllm: vllm serve, or the LLM class.  [default: server]"),
    click.option("--gpu-memory-utilization", type=float, help="vllm: share of the GPU.  [default: 0.92; 0.9 before 0.20]"),
    click.option("--max-model-len", type=int, help="vllm: tokens of the longest request.  [default: the model's]"),
    click.option("--max-num-seqs", type=int, help="vllm: sequences a step.  [default: by version and GPU]"),
    click.option("--max-num-batched-tokens", type=int, help="vllm: tokens a step.  [default: by version and GPU]"),
    click.option("--block-size", type=int, help="vllm: tokens of a block.  [default: 16; 64 for MLA on Hopper]"),
    click.option("--tensor-parallel-size", "--tp", "tensor_parallel_size", type=int, help="vllm: GPUs; figures are of one.  [default: 1]"),
    click.option("--kv-cache-dtype", metavar="DTYPE", help="vllm: auto, bfloat16, float16, fp8, fp8_ds_mla, nvfp4.  [default: auto]"),
    click.option("--quantization", metavar="SCHEME", help="vllm: linear weights as fp8, fp8-block, llm-int8, gptq-4, awq-4, nf4-double, mxfp4; llama.cpp: a safetensors model as Q4_0, Q8_0, Q4_K, …"),
    click.option("--enforce-eager", is_flag=True, default=None, help="vllm: no CUDA graphs."),
    click.option("--max-loras", type=int, help="vllm: slots for adapters.  [default: 0]"),
    click.option("--max-lora-rank", type=int, help="vllm: their rank.  [default: 16]"),
    click.option("--draft-layers", type=int, help="vllm: layers of a draft model (EAGLE, MTP) whose cache is kept too.  [default: 0]"),
    # llama.cpp
    click.option("-c", "--ctx-size", type=int, help="llama.cpp: tokens of the cache.  [default: the model's]"),
    click.option("-ngl", "--gpu-layers", type=int, help="llama.cpp: layers on the GPU.  [default: all]"),
    click.option("-np", "--parallel", type=int, help="llama.cpp: slots.  [default: 1]"),
    click.option("-ub", "--ubatch-size", type=int, help="llama.cpp: tokens of a micro-batch.  [default: 512]"),
    click.option("-ctk", "--cache-type-k", metavar="TYPE", help="llama.cpp: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl.  [default: f16]"),
    click.option("-ctv", "--cache-type-v", metavar="TYPE", help="llama.cpp: of the values.  [default: f16]"),
    click.option("--no-flash-attention", "flash_attention", flag_value=False, default=None, help="llama.cpp: -fa off."),
    click.option("--swa-full", is_flag=True, default=None, help="llama.cpp: sliding layers keep every token."),
    click.option("--cpu-moe", is_flag=True, default=None, help="llama.cpp: experts in host memory."),
)  # fmt: skip


def _options(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("infer")
@click.argument("target")
@click.option(
    "--engine",
    type=click.Choice(ENGINES, case_sensitive=False),
    help="What runs it.  [default: transformers; llama.cpp for a GGUF file]",
)
@allocator_options
@click.option("--fits", "check", is_flag=True, help="Exit with 0 if it fits on --gpu, with 1 if not.")
@click.option("--explain", is_flag=True, help="Show the arithmetic behind every row.")
@_options
@click.option("--trust-remote-code", is_flag=True, help="transformers: run the Python code in the model's repository.")
@source_options
@output_options("an item")
def command(
    target: str, engine: str | None, gpu: str | None, memory: int | None, alloc_conf: str, check: bool, explain: bool, trust_remote_code: bool,
    revision: str | None, token: str | None, offline: bool, as_json: bool, as_csv: bool, as_markdown: bool, output: Path | None, quiet: bool,
    debug: bool, **options: Any,
) -> None:  # fmt: skip
    """What does it take to load this model, to prefill, to decode, and to serve it; how much fits on this GPU?

    TARGET is a model id, a folder, or a GGUF file. Each engine has its own options, by its own names.

    \b
    graphmem infer Qwen/Qwen2.5-7B-Instruct --prompt 8192 --new-tokens 512 --gpu "RTX 4090"
    graphmem infer meta-llama/Llama-3.1-8B-Instruct --engine vllm --gpu L40S --max-model-len 32768
    graphmem infer bartowski/Llama-3.2-3B-Instruct-GGUF/Llama-3.2-3B-Instruct-Q4_K_M.gguf -c 8192 -ngl 20 --gpu "RTX 3060"
    """
    chosen = choose_format(format_flags(as_json, as_csv, as_markdown), output)
    if check and gpu is None and memory is None:
        raise GraphmemError("--fits needs a GPU to fit on; add --gpu NAME or --memory SIZE")
    with working("Working out", quiet):
        from graphmem.api import infer

        found = infer(
            target, engine=engine, gpu=gpu, memory=memory, alloc_conf=alloc_conf, trust_remote_code=trust_remote_code, revision=revision,
            token=token, offline=offline, **options,
        )  # fmt: skip
    write(found.report(), chosen, output, quiet=quiet, explain=explain)
    if check and not found.fits:
        raise click.exceptions.Exit(1)
