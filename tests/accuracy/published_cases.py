"""One case for every published figure of allocated, reserved or driver-level memory, on one GPU, whose settings a trace can run.

Settings come from the row and its source, none from the figure. `NOT_COVERED` names every other such row, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

import graphmem
from graphmem.tracing.device import Device
from graphmem.tracing.trace import Trace
from graphmem.training.optimizers import optimizer_named
from tests.accuracy.published_models import bert, klein, litgpt, litgpt_nf4, litgpt_thunder, loaded, timm, torchtune

_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True)
class PublishedCase:
    """A figure and the trace of its settings.

    `measured` is in bytes; ``driver`` includes the CUDA context, ``reserved`` and ``allocated`` are PyTorch's own counters. `gpu` and `torch` are as the
    source says, empty if it does not. `trace(device)` runs the settings: two optimizer steps where the figure is a run's peak.
    """

    name: str
    source: str
    metric: Literal["allocated", "reserved", "driver"]
    measured: int
    gpu: str
    torch: str
    settings: str
    trace: Callable[[Device], Trace]
    alloc_conf: str = ""
    #: The CUDA context in bytes, where the source measured it; None: it did not say.
    context: int | None = None


#: What the guide's nvidia-smi shows once the kernels are loaded and before the model is: 1343 MB.
_GUIDE_CONTEXT = 1343 * _MIB
_GUIDE = "huggingface/transformers:docs/source/en/perf_train_gpu_one.mdx@0016acf"


def _bert_trace(
    device: Device, batch: int, accumulate: int, optimizer: Callable[[Any], Any], fp16: bool, checkpointing: bool
) -> Trace:
    return graphmem.trace(
        bert.classifier(checkpointing),
        bert.batch(batch),
        step="train",
        autocast=torch.float16 if fp16 else None,
        optimizer=lambda parameters: bert.Accumulated(optimizer(parameters), accumulate),
        steps=accumulate + 1,  # the first step after an update: gradients and states are there
        device=device,
    )


def _bert(
    row: str, mib: int, batch: int, accumulate: int, optimizer: str, fp16: bool = False, checkpointing: bool = False
) -> PublishedCase:
    """A row of the guide: NVML's figure after 512 samples of 512 random tokens, labels 0 and 1, by transformers' Trainer."""
    # bitsandbytes had blocks of 2,048 then.
    eight_bit = optimizer_named("bitsandbytes.Adam8bit(block_size=2048)")
    makes = {"AdamW": bert.TransformersAdamW, "Adafactor": bert.adafactor, "8-bit Adam": eight_bit}[optimizer]
    parts = [
        f"BERT-large classifier, {batch} × 512 tokens",
        f"accumulated over {accumulate}" if accumulate > 1 else "",
        f"{optimizer}, {'fp16 autocast' if fp16 else 'fp32'}",
        "layers checkpointed" if checkpointing else "",
        "eager attention, its softmax as before PyTorch 1.11 (by the date), dropout 0.1; confidence high",
    ]
    return PublishedCase(
        row, _GUIDE, "driver", mib * _MIB, "Tesla V100-SXM2-16GB", "", ", ".join(part for part in parts if part),
        partial(_bert_trace, batch=batch, accumulate=accumulate, optimizer=makes, fp16=fp16, checkpointing=checkpointing),
        context=_GUIDE_CONTEXT,
    )  # fmt: skip


def _loaded_trace(device: Device, model: Callable[[], Any]) -> Trace:
    return graphmem.trace(loaded.Loaded(model()), torch.zeros(1), grad=False, device=device)


def _loaded(row: str, source: str, measured: int, gpu: str, settings: str, model: Callable[[], Any]) -> PublishedCase:
    """What is reserved once a model is on the device, before it runs."""
    return PublishedCase(row, source, "reserved", measured, gpu, "", settings, partial(_loaded_trace, model=model))


def _klein_trace(device: Device, rank: int | None) -> Trace:
    return graphmem.trace(
        klein.training(rank), step="train", loss=lambda output: output[0], optimizer=klein.ClippedAdamW, steps=2, device=device
    )  # fmt: skip


def _klein(row: str, measured: int, release: str, rank: int | None, file: str) -> PublishedCase:
    """A row of peft's method comparison: most bytes reserved after a step, the cache emptied every 25."""
    return PublishedCase(
        row, f"huggingface/peft:method_comparison/image-gen/results/{file}.json@5d602fd", "reserved", measured,
        "NVIDIA L40S 48GB", release,
        f"FLUX.2-klein-base-4B, {f'LoRA r={rank} on its linears, adapters fp32' if rank else 'all parameters'}, 2 × 512 × 512 pixels, "
        "512 text tokens, bf16, AdamW, gradients clipped, blocks checkpointed, DINOv2 beside it; confidence medium",
        partial(_klein_trace, rank=rank),
    )  # fmt: skip


_NAMES = {
    litgpt.PHI: "phi-1.5", litgpt.STABLELM_3B: "StableLM-base-alpha-3B", litgpt.LLAMA_7B: "Llama-2-7B", litgpt.LLAMA_13B: "Llama-2-13B",
}  # fmt: skip
_LITGPT = "Lightning-AI/litgpt:tutorials/resource-tables.md@8641822"


def _litgpt_trace(device: Device, shape: litgpt.Shape, batch: int, linear: Callable[..., Any]) -> Trace:
    return graphmem.trace(
        litgpt.finetuning(shape, linear), *litgpt.batch(batch, shape), step="train", loss=lambda output: output[0],
        optimizer=torch.optim.AdamW, device=device,
    )  # fmt: skip


def _litgpt(row: str, gigabytes: float, shape: litgpt.Shape, batch: int = 1, stored: str = "bf16") -> PublishedCase:
    """A row of lit-gpt's table: ``max_memory_allocated`` in 10^9 bytes of LoRA r=8 on q and v; the first batch is the longest."""
    linear = {
        "bf16": litgpt.frozen,
        "nf4": litgpt_nf4.quantized(double=False),
        "nf4-dq": litgpt_nf4.quantized(double=True),
    }[stored]
    return PublishedCase(
        row, _LITGPT, "allocated", round(gigabytes * 1e9), "", "2.1",
        f"{_NAMES[shape]}, LoRA r=8 on q and v, base {stored}, {batch} × {shape.longest} tokens, AdamW, bf16; confidence high",
        partial(_litgpt_trace, shape=shape, batch=batch, linear=linear),
    )  # fmt: skip


def _thunder_trace(device: Device) -> Trace:
    return graphmem.trace(
        litgpt_thunder.pretraining(), litgpt_thunder.batch(), step="train", loss=lambda output: output[0],
        optimizer=litgpt_thunder.Accumulated, steps=litgpt_thunder.STEPS, device=device,
    )  # fmt: skip


_TORCHTUNE = "pytorch/torchtune:README.md@1814feb"


def _torchtune_trace(device: Device, options: dict[str, Any]) -> Trace:
    fused = "method" in options  # the LoRA recipes ask for it, the full one's AdamW is the default
    return graphmem.trace(
        torchtune.finetuning(device, **options), *torchtune.batch(), step="train", loss=lambda output: output,
        optimizer=partial(torch.optim.AdamW, fused=True) if fused else torch.optim.AdamW, steps=2, device=device,
    )  # fmt: skip


def _torchtune(row: str, gib: float, what: str, **options: Any) -> PublishedCase:
    """A row of torchtune's table of November 2024: ``max_memory_active`` in GiB, packed sequences of 4,096 tokens."""
    return PublishedCase(
        row, _TORCHTUNE, "allocated", round(gib * _GIB), "", "2.5",
        f"Llama-3.2-3B, 2 × 4,096 packed tokens, bf16, layers compiled, flex attention, {what}; confidence high",
        partial(_torchtune_trace, options=options),
    )  # fmt: skip


_TORCHAO = "pytorch/ao:torchao/optim/README.md"


def _huge_trace(device: Device, optimizer: str) -> Trace:
    return graphmem.trace(
        timm.huge(device, 8), *timm.batch(8), step="train", autocast=torch.bfloat16, loss=lambda output: output,
        optimizer=optimizer_named(optimizer), steps=2, device=device,
    )  # fmt: skip


def _giant_trace(device: Device, optimizer: Callable[[Any], Any]) -> Trace:
    return graphmem.trace(
        timm.giant(), *timm.batch(32, torch.bfloat16), step="train", loss=lambda output: output, optimizer=optimizer, steps=2, device=device
    )  # fmt: skip


def _torchao(row: str, gigabytes: float, what: str, trace: Callable[[Device], Trace]) -> PublishedCase:
    """A row of torchao's benchmark of low-bit optimizers: ``max_memory_allocated`` in 10^9 bytes."""
    return PublishedCase(row, _TORCHAO, "allocated", round(gigabytes * 1e9), "RTX 4070 Ti SUPER", "2.4", what, trace)


_HUGE = "ViT-H/14, 8 × 224², bf16 autocast, compiled, {}; confidence high"
_GIANT = "ViT-g/14, 32 × 224², pure bf16, blocks checkpointed, eager, {}; confidence medium"


def _large_trace(device: Device, **settings: Any) -> Trace:
    return graphmem.train(
        timm.large(), timm.batch(1)[0], loss=lambda output: output.sum(), device=device, **settings
    ).trace


def _large(row: str, gigabytes: float, what: str, **settings: Any) -> PublishedCase:
    """A figure of PyTorch's tutorial, printed with a tilde."""
    return PublishedCase(
        row, "pytorch/tutorials:intermediate_source/optimizer_step_in_backward_tutorial.py@2a48870", "allocated", round(gigabytes * 1e9),
        "", "2.1", f"ViT-L/16 of torchvision, one image, fp32, {what}; “about”; confidence medium", partial(_large_trace, **settings),
    )  # fmt: skip


CASES: tuple[PublishedCase, ...] = (
    _torchao("T030", 12.23, _HUGE.format("fused AdamW"), partial(_huge_trace, optimizer="AdamW(fused=True)")),
    _torchao(
        "T032", 8.33, _HUGE.format("torchao's AdamW8bit (blocks of 2,048 then)"),
        partial(_huge_trace, optimizer="torchao.AdamW8bit(block_size=2048)"),
    ),
    _torchao("T034", 7.72, _HUGE.format("torchao's AdamW4bit"), partial(_huge_trace, optimizer="torchao.AdamW4bit")),
    _torchao("T035", 9.82, _GIANT.format("fused AdamW"), partial(_giant_trace, optimizer=partial(torch.optim.AdamW, fused=True))),
    _torchao("T037", 5.24, _GIANT.format("CPUOffloadOptimizer"), partial(_giant_trace, optimizer=timm.OffloadedAdam)),
    _torchtune("T045", 51.0, "full finetuning, all logits in fp32", whole=True),
    _torchtune("T046", 42.9, "full finetuning, logits in eight chunks"),
    _torchtune("T051", 8.5, "LoRA r=64, layers checkpointed, activations offloaded", method="lora", moved=True),
    _torchtune("T052", 4.6, "QLoRA r=64, layers checkpointed, activations offloaded", method="qlora", moved=True),
    _large("T261", 6, "Adam", optimizer="Adam"),
    _large("T262", 4, "an Adam a parameter, stepping in backward", optimizer="Adam(foreach=False)", optimizer_in_backward=True),
    _litgpt("T067", 4.82, litgpt.PHI),
    _litgpt("T068", 3.78, litgpt.PHI, stored="nf4"),
    _litgpt("T069", 3.72, litgpt.PHI, stored="nf4-dq"),
    _litgpt("T073", 6.35, litgpt.STABLELM_3B, stored="nf4"),
    _litgpt("T074", 6.19, litgpt.STABLELM_3B, stored="nf4-dq"),
    _litgpt("T075", 12.10, litgpt.STABLELM_3B, 2),
    _litgpt("T076", 16.92, litgpt.STABLELM_3B, 4),
    _litgpt("T077", 21.30, litgpt.LLAMA_7B),
    _litgpt("T078", 14.14, litgpt.LLAMA_7B, stored="nf4"),
    _litgpt("T079", 13.84, litgpt.LLAMA_7B, stored="nf4-dq"),
    _litgpt("T080", 29.07, litgpt.LLAMA_7B, 2),
    _litgpt("T081", 38.12, litgpt.LLAMA_13B),
    _litgpt("T082", 23.14, litgpt.LLAMA_13B, stored="nf4"),
    _litgpt("T083", 22.55, litgpt.LLAMA_13B, stored="nf4-dq"),
    PublishedCase(
        "T117", "Lightning-AI/litgpt:extensions/thunder/README.md", "allocated", round(29.84e9), "", "2.4",
        "TinyLlama-1.1B from scratch, 4 × 2,048 tokens, pure bf16, fused AdamW, gradients accumulated; confidence high", _thunder_trace,
    ),
    _loaded(
        "W051", _GUIDE, 1288 * _MIB, "V100 16GB", "BERT-large classifier on the device in fp32, NVML's rise over the context; "
        "confidence high", bert.classifier,
    ),
    _loaded(
        "W053", "unslothai/notebooks:nb/Granite4.0.ipynb@bdda2ef", round(6.059 * _GIB), "",
        "granite-4.0-h-micro in 16 bits with LoRA r=32 on q, k, v, o in fp32, loaded, before training; confidence medium",
        loaded.granite,
    ),
    _loaded(
        "W054", "unslothai/notebooks:nb/Qwen_3_5_27B_A100(80GB).ipynb@bdda2ef", round(51.156 * _GIB), "",
        "Qwen3.5-27B in bf16 with LoRA r=8 on q, k, v, o, out_proj and the MLP in fp32, loaded, before training; confidence medium",
        loaded.qwen,
    ),
    _bert("T228", 14949, 4, 1, "AdamW"),
    _bert("T230", 6775, 1, 4, "AdamW", checkpointing=True),
    _bert("T231", 13939, 4, 1, "AdamW", fp16=True),
    _bert("T232", 7275, 1, 4, "AdamW", fp16=True, checkpointing=True),
    _bert("T233", 12295, 4, 1, "Adafactor"),
    _bert("T234", 4847, 1, 4, "Adafactor", fp16=True, checkpointing=True),
    _bert("T236", 5363, 1, 4, "8-bit Adam", fp16=True, checkpointing=True),
    _klein("T242", 39873150976, "2.12", None, "full-finetuning--flux2-klein-default"),
    _klein("T243", 10708058112, "2.12", 32, "lora--flux2-klein-default"),
    _klein("T244", 11383341056, "2.13", 64, "lora--flux2-klein-rank64"),
)  # fmt: skip


def _rows(numbers: str) -> list[str]:
    """``"54 56"`` → T054, T056: the rows of training."""
    return [f"T{int(number):03}" for number in numbers.split()]


NOT_COVERED: dict[str, str] = {
    **dict.fromkeys(_rows("38"), "gradients stay until copies on a second stream end: a matter of timing"),
    **dict.fromkeys(
        _rows("36"),
        "the same as T035 compiled, with checkpointing: compiled graphs choose themselves what they compute again",
    ),
    **dict.fromkeys(_rows("40 41 42 43"), "unit not known (GB or GiB); lengths of the batches depend on the data"),
    **dict.fromkeys(_rows("85 86"), "LLaMA-Adapter is not modelled; confidence medium"),
    **dict.fromkeys(
        _rows("91 93 94 95 97 98 99 100 103 105 106 108 109 110 111 112 113 114 115 116"),
        "litgpt of 2024 on Alpaca cut at 512 tokens: whether a batch of 512 was met depends on the data; confidence medium or low",
    ),
    **dict.fromkeys(_rows("120 121"), "Thunder's own compiler"),
    **dict.fromkeys(
        _rows("62 63 65"), "torchtune on Alpaca: lengths of the batches depend on the data, and no limit is given"
    ),
    **dict.fromkeys(_rows("54 56 58"), "torch.compile; optimizer and checkpointing not printed"),
    **dict.fromkeys(
        _rows("190 191 192 193 194 196 197 198 203 204 215 218 220 221 222 223"),
        "Qwen 1's own code, not in transformers; samples are cut at the maximum and vary below it, which fragments",
    ),
    **dict.fromkeys(_rows("205 209"), "samples are cut at the maximum and vary below it, which fragments"),
    **dict.fromkeys(_rows("211 214"), "confidence low: not monotonic in the length"),
    **dict.fromkeys(_rows("225 226"), "GPTQ kernels"),
    **dict.fromkeys(_rows("227"), "Qwen 1's own code, not in transformers; lengths vary"),
    **dict.fromkeys(
        _rows("245 246 247 248 251"),
        "confidence low; bitsandbytes and Unsloth's own kernels, lengths depend on the data",
    ),
    **dict.fromkeys(
        _rows("237 238 240 241"),
        "99th percentile over batches of many lengths: 768 tokens are the limit, those of that batch are not known",
    ),
    **dict.fromkeys(
        _rows("142 144 146 147 148 150 152 154 155 157 158 186 188 189"),
        "metric not stated, it may be driver level; Qwen 1's own code",
    ),
    **dict.fromkeys(
        _rows("162 163 164 165 166 169 170 171 172 173 176"),
        "metric not stated, it may be driver level; GPTQ kernels",
    ),
    **dict.fromkeys(_rows("178 179 180 181 182 183"), "metric not stated; confidence low: the setup is not given"),
}
