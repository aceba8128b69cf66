"""Published figures of inference and serving, and what `graphmem infer` says for the settings that their sources state.

Settings come from the row and its source, none from the figure. `NOT_COVERED` names every other row on one engine of ours, with the reason.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from graphmem.checkpoint import ModelSpec
from graphmem.engines.llama_cpp.buffers import Buffers
from graphmem.engines.llama_cpp.settings import Running
from graphmem.engines.shape import shape_of
from graphmem.engines.transformers.run import Generated, generated, served
from graphmem.engines.transformers.settings import Generating
from graphmem.engines.vllm.budget import Budget, budget
from graphmem.engines.vllm.serving import Serving
from graphmem.inspection.model import understand
from graphmem.sources.load import Access, load
from graphmem.tracing.device import Device, traced_for
from graphmem.tracing.targets import Choices
from graphmem.units import GIB, MIB

Kind = Literal["weights", "available", "blocks", "peak", "steady", "driver", "overhead"]
OFFLINE = Access(offline=True)


@dataclass(frozen=True)
class Case:
    """A figure, in bytes (blocks: a count), and how it is predicted."""

    name: str
    source: str
    kind: Kind
    measured: float
    settings: str
    predict: Callable[[], float]
    #: Half of the last digit printed, in the unit of ``measured``.
    printed: float = 0.0


@cache
def _folder(name: str, config: str) -> str:
    """A folder with a config.json, for a model that the catalog does not have."""
    folder = Path(tempfile.mkdtemp()) / name
    folder.mkdir()
    (folder / "config.json").write_text(config)
    return str(folder)


def _qwen(
    name: str, kind: str, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, positions: int, **more: Any
) -> str:
    config = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": 151936, "torch_dtype": "bfloat16",
        "tie_word_embeddings": True, "max_position_embeddings": positions, "rope_theta": 1000000.0, "hidden_act": "silu", **more,
    }  # fmt: skip
    return _folder(name, json.dumps(config))


def _qwen25_3b() -> str:
    return _qwen("Qwen2.5-3B-Instruct", "qwen2", 2048, 36, 16, 2, 11008, 32768)


def _qwen3_1_7b() -> str:
    return _qwen("Qwen3-1.7B", "qwen3", 2048, 28, 16, 8, 6144, 40960, head_dim=128)


def _codellama_34b() -> str:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 22016, "vocab_size": 32000, "torch_dtype": "float16", "max_position_embeddings": 16384,
        "rope_theta": 1000000, "tie_word_embeddings": False,
    }  # fmt: skip
    return _folder("CodeLlama-34B", json.dumps(config))


def _spec(target: str | Callable[[], str], config: dict[str, Any] | None) -> ModelSpec:
    spec = load(target if isinstance(target, str) else target(), OFFLINE).sections[0]
    return replace(spec, config={**spec.config, **(config or {})})


def vllm(
    target: str | Callable[[], str],
    gpu: str,
    total: float | None,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> Budget:
    """A budget on a GPU of ``total`` GiB as the source says; None: the table's. ``config``: what the served checkpoint's config has otherwise."""
    model, _ = understand(_spec(target, config))
    device = traced_for(None, gpu, None)
    if total is not None:
        device = replace(device, memory=round(total * GIB))
    return budget(model, device, Serving(**{"max_model_len": 4096, **settings}))


_PLANNER = "llm-d-incubation/llm-d-planner:docs/empirical-vllm-memory-results.md@e50305a"
_NOTEBOOKS = "unslothai/notebooks:nb/{}@bdda2ef"
_LLAMA_3B = "meta-llama/Llama-3.2-3B-Instruct"
#: The notebooks give adapters one slot; ranks are those their cells set (Unsloth's default is 64).
_SLOT = {"max_loras": 1}
_H100 = {"version": "0.11.0", "gpu_memory_utilization": 0.9, "max_model_len": 16000, "block_size": 128}

#: name, source, measured GiB of KV, what else the source prints, the budget.
_KV: tuple[tuple[str, str, float, int | None, str, Callable[[], Budget]], ...] = (
    ("K001", _PLANNER, 50.28, None, "gpt-oss-20b, H100, vLLM 0.11.0", partial(vllm, "openai/gpt-oss-20b", "H100-80GB", 79.18, **_H100)),
    ("K005", _PLANNER, 64.45, None, "Qwen3-0.6B, H100, vLLM 0.11.0", partial(vllm, "Qwen/Qwen3-0.6B", "H100-80GB", 79.18, **_H100)),
    (
        "K009", _NOTEBOOKS.format("Advanced_Llama3_1_(3B)_GRPO_LoRA.ipynb"), 23.46, 13724, "Llama-3.2-3B, A100 40GB, vLLM 0.8.1 (V0), LoRA rank 64",
        partial(vllm, _LLAMA_3B, "A100-40GB", 39.56, version="0.8.1", v1=False, gpu_memory_utilization=0.79, max_model_len=2048, max_num_seqs=320, max_num_batched_tokens=2048, max_lora_rank=64, **_SLOT),
    ),
    (
        "K010", _NOTEBOOKS.format("Advanced_Llama3_2_(3B)_GRPO_LoRA.ipynb"), 1.74, 1017, "Llama-3.2-3B, T4, vLLM 0.8.5 (V0), LoRA rank 64",
        partial(vllm, _LLAMA_3B, "T4", 14.74, version="0.8.5", gpu_memory_utilization=0.59, max_model_len=2048, max_num_seqs=160, max_num_batched_tokens=2048, max_lora_rank=64, **_SLOT),
    ),
    (
        "K013", _NOTEBOOKS.format("Meta_Synthetic_Data_Llama3_2_(3B).ipynb"), 6.22, 3637, "Llama-3.2-3B, T4, vLLM 0.8.2 (V0)",
        partial(vllm, _LLAMA_3B, "T4", 14.74, version="0.8.2", gpu_memory_utilization=0.89, max_model_len=2048, max_num_seqs=192, max_num_batched_tokens=2048),
    ),
    (
        "K018", _NOTEBOOKS.format("Qwen3_(4B)-GRPO.ipynb"), 1.68, 764, "Qwen3-4B-Base, T4, vLLM 0.8.5 (V0), LoRA rank 32",
        partial(vllm, "Qwen/Qwen3-4B", "T4", 14.74, {"max_position_embeddings": 32768}, version="0.8.5", gpu_memory_utilization=0.69, max_model_len=2048, max_num_seqs=160, max_num_batched_tokens=2048, max_lora_rank=32, **_SLOT),
    ),
    (
        "K022", "vllm-project/vllm#10517", 3.81, 1952, "Llama-3.1-8B, RTX 3090, vLLM 0.6.4 (V0), 20,000 tokens",
        partial(vllm, "meta-llama/Llama-3.1-8B-Instruct", "RTX 3090", 23.58, version="0.6.4", gpu_memory_utilization=0.9, max_model_len=20000),
    ),
    (
        "K025", "vllm-project/vllm#21348", 8.11, None, "Qwen3-235B-A22B-FP8 on 4 × H100, vLLM of July 2025",
        partial(vllm, "Qwen/Qwen3-235B-A22B", "H100-80GB", 79.18, version="0.9.2", max_model_len=40960, tensor_parallel_size=4, quantization="fp8-block"),
    ),
    # Medium confidence: settings partly inferred by those who collected them.
    ("K002", _PLANNER, 3.33, None, "gpt-oss-120b, H100, vLLM 0.11.0, share 0.95 (medium)", partial(vllm, "openai/gpt-oss-120b", "H100-80GB", 79.18, **{**_H100, "gpu_memory_utilization": 0.95})),
    ("K021", "vllm-project/vllm#10511", 53.29, None, "Llama-3-8B, 80 GB, a branch of vLLM of December 2024 (medium)", partial(vllm, "meta-llama/Meta-Llama-3-8B", "H100-80GB", 79.22, version="0.6.4", max_model_len=8192)),
)  # fmt: skip

#: Blocks that a stated budget holds: name, source, GiB as printed, blocks, the model and its settings.
_BLOCKS: tuple[tuple[str, str, float, int, Callable[[], Budget]], ...] = (
    *((name, source, gib, blocks, predict) for name, source, gib, blocks, _, predict in _KV if blocks is not None),
    ("K016", _NOTEBOOKS.format("Qwen2.5_(3B)-GRPO.ipynb"), 4.01, 7300, partial(vllm, _qwen25_3b, "T4", 14.74, version="0.7.1", max_model_len=1024)),
    ("K019", _NOTEBOOKS.format("Llama_FP8_GRPO.ipynb"), 17.2, 563744 // 16, partial(vllm, "meta-llama/Llama-3.2-1B", "L4", None, version="0.11.2", max_model_len=2048)),
    ("K020", _NOTEBOOKS.format("Qwen3_8B_FP8_GRPO.ipynb"), 8.98, 65376 // 16, partial(vllm, "Qwen/Qwen3-8B", "L4", None, version="0.10.2", max_model_len=2048)),
    ("K025", "vllm-project/vllm#21348", 8.11, 178880 // 16, partial(vllm, "Qwen/Qwen3-235B-A22B", "H100-80GB", 79.18, version="0.9.2", tensor_parallel_size=4)),
)  # fmt: skip

_WEIGHTS: tuple[tuple[str, str, float, str, Callable[[], Budget]], ...] = (
    ("W001", _PLANNER, 13.47, "gpt-oss-20b, mxfp4, H100", partial(vllm, "openai/gpt-oss-20b", "H100-80GB", None, version="0.11.0")),
    ("W002", _PLANNER, 64.38, "gpt-oss-120b, mxfp4, H100", partial(vllm, "openai/gpt-oss-120b", "H100-80GB", None, version="0.11.0")),
    ("W004", _PLANNER, 14.99, "Llama-3.1-8B, bf16", partial(vllm, "meta-llama/Llama-3.1-8B-Instruct", "H100-80GB", None, version="0.11.0")),
    ("W005", _PLANNER, 1.12, "Qwen3-0.6B, bf16", partial(vllm, "Qwen/Qwen3-0.6B", "H100-80GB", None, version="0.11.0")),
    ("W006", _PLANNER, 61.03, "Qwen3-32B, bf16", partial(vllm, "Qwen/Qwen3-32B", "H100-80GB", None, version="0.11.0")),
    ("W007", _PLANNER, 30.59, "Qwen3-32B, bf16, one of two GPUs", partial(vllm, "Qwen/Qwen3-32B", "H100-80GB", None, version="0.11.0", tensor_parallel_size=2)),
    ("W009", _PLANNER, 67.72, "Llama-3.3-70B, fp8", partial(vllm, "meta-llama/Llama-3.3-70B-Instruct", "H100-80GB", None, version="0.11.0", quantization="fp8")),
    ("W010", _NOTEBOOKS.format("Advanced_Llama3_1_(3B)_GRPO_LoRA.ipynb"), 6.2472, "Llama-3.2-3B, bf16, LoRA rank 64", partial(vllm, _LLAMA_3B, "A100-40GB", None, version="0.8.1", max_lora_rank=64, **_SLOT)),
    ("W011", _NOTEBOOKS.format("Advanced_Llama3_2_(3B)_GRPO_LoRA.ipynb"), 6.2473, "Llama-3.2-3B, fp16, LoRA rank 64", partial(vllm, _LLAMA_3B, "T4", None, version="0.8.5", max_lora_rank=64, **_SLOT)),
    ("W014", _NOTEBOOKS.format("Meta_Synthetic_Data_Llama3_2_(3B).ipynb"), 6.016, "Llama-3.2-3B, fp16", partial(vllm, _LLAMA_3B, "T4", None, version="0.8.2")),
    ("W019", _NOTEBOOKS.format("Qwen3_(4B)-GRPO.ipynb"), 7.6334, "Qwen3-4B-Base, fp16, LoRA rank 32", partial(vllm, "Qwen/Qwen3-4B", "T4", None, {"max_position_embeddings": 32768}, version="0.8.5", max_lora_rank=32, **_SLOT)),
    ("W020", _NOTEBOOKS.format("Llama_FP8_GRPO.ipynb"), 1.4721, "Llama-3.2-1B, fp8 in blocks, LoRA rank 32", partial(vllm, "meta-llama/Llama-3.2-1B", "L4", None, version="0.11.2", quantization="fp8-block", max_lora_rank=32, **_SLOT)),
    ("W021", _NOTEBOOKS.format("Qwen3_8B_FP8_GRPO.ipynb"), 8.9638, "Qwen3-8B, fp8 in blocks, LoRA rank 32", partial(vllm, "Qwen/Qwen3-8B", "L4", None, version="0.10.2", quantization="fp8-block", max_lora_rank=32, **_SLOT)),
    ("W022", "vllm-project/vllm#10511", 14.96, "Llama-3-8B, bf16", partial(vllm, "meta-llama/Meta-Llama-3-8B", "H100-80GB", None, version="0.6.4")),
    ("W024", "vllm-project/vllm#10517", 14.9888, "Llama-3.1-8B, bf16", partial(vllm, "meta-llama/Llama-3.1-8B-Instruct", "RTX 3090", None, version="0.6.4")),
    ("W025", "vllm-project/vllm#12569", 67.7229, "Llama-3.1-70B, int8 w8a8", partial(vllm, "meta-llama/Llama-3.1-70B-Instruct", "H100-80GB", None, version="0.7.1", quantization="llm-int8")),
    ("W037", "vllm-project/vllm#6509", 17.056, "CodeLlama-34B, AWQ", partial(vllm, _codellama_34b, "A100-80GB", None, version="0.5.5", quantization="awq-4")),
)  # fmt: skip

#: Published without a repository to cite: held against, counted together, not printed.
UNCITED_WEIGHTS: tuple[tuple[float, Callable[[], Budget]], ...] = (
    (2.8884, partial(vllm, "Qwen/Qwen2.5-1.5B", "T4", None, {"max_position_embeddings": 32768}, version="0.7.2")),
    (14.2717, partial(vllm, "Qwen/Qwen2.5-7B", "A100-80GB", None, version="0.7.2")),
    (14.2409, partial(vllm, "Qwen/Qwen2.5-7B-Instruct", "A100-80GB", None, version="0.5.5")),
    (12.5523, partial(vllm, "meta-llama/Llama-2-7b-hf", "A100-80GB", None, version="0.6.6")),
    (8.4926, partial(vllm, "meta-llama/Llama-3.1-8B-Instruct", "A100-80GB", None, version="0.6.4", quantization="fp8")),
)  # fmt: skip
UNCITED_KV: tuple[tuple[float, Callable[[], Budget]], ...] = (
    (2.36, partial(vllm, "Qwen/Qwen2.5-1.5B", "T4", 14.56, {"max_position_embeddings": 32768}, version="0.7.2", gpu_memory_utilization=0.5, max_model_len=32768)),
    (45.21, partial(vllm, "microsoft/phi-4", "A100-80GB", 79.15, version="0.8.2", v1=False, gpu_memory_utilization=0.696, max_model_len=512, max_num_seqs=320, max_num_batched_tokens=2048, quantization="nf4-double", max_lora_rank=16, **_SLOT)),
    (11.57, partial(vllm, "Qwen/Qwen3-14B", "L40S", None, version="0.28.0", max_model_len=40960)),
    (29.63, partial(vllm, "Qwen/Qwen3-14B", "L40S", None, version="0.28.0", max_model_len=40960, quantization="awq-4")),
    (31.02, partial(vllm, "Qwen/Qwen3-14B", "L40S", None, version="0.28.0", gpu_memory_utilization=0.95, max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=8192, quantization="awq-4")),
)  # fmt: skip

_QWEN25 = "QwenLM/Qwen3 history a912d23:docs/source/benchmark"
#: (row, target, prompt, GiB): transformers 4.46, flash-attn, 2,048 new tokens, bf16, one A100 80GB; `max_memory_allocated`.
_PEAKS = (
    ("I023", "Qwen/Qwen2.5-0.5B", 1, 0.97), ("I027", "Qwen/Qwen2.5-0.5B", 6144, 1.23), ("I028", "Qwen/Qwen2.5-0.5B", 14336, 1.6),
    ("I029", "Qwen/Qwen2.5-0.5B", 30720, 2.34), ("I030", "Qwen/Qwen2.5-1.5B", 1, 2.95), ("I034", "Qwen/Qwen2.5-1.5B", 6144, 3.43),
    ("I035", "Qwen/Qwen2.5-1.5B", 14336, 4.16), ("I037", _qwen25_3b, 1, 5.95), ("I042", _qwen25_3b, 14336, 7.47),
    ("I044", "Qwen/Qwen2.5-7B", 1, 14.38), ("I048", "Qwen/Qwen2.5-7B", 6144, 15.38), ("I052", "Qwen/Qwen2.5-7B", 14336, 16.91),
    ("I056", "Qwen/Qwen2.5-7B", 30720, 19.97), ("I064", "Qwen/Qwen2.5-14B", 6144, 29.5), ("I066", "Qwen/Qwen2.5-14B", 30720, 36.85),
    ("I071", "Qwen/Qwen2.5-32B", 6144, 63.72), ("I073", "Qwen/Qwen2.5-32B", 30720, 74.47),
)  # fmt: skip

_QWEN3 = "QwenLM/Qwen3:docs/source/getting_started/speed_benchmark"
#: (row, target, prompt, MiB): transformers 4.51, flash-attn, 2,048 new tokens, bf16, one H20; allocated when generation is over.
_STEADY = (
    ("S001", "Qwen/Qwen3-0.6B", 1, 1394), ("S004", "Qwen/Qwen3-0.6B", 6144, 2066), ("S010", "Qwen/Qwen3-0.6B", 30720, 4755),
    ("S016", _qwen3_1_7b, 6144, 4213), ("S022", _qwen3_1_7b, 30720, 6902), ("S028", "Qwen/Qwen3-4B", 6144, 8860),
    ("S031", "Qwen/Qwen3-4B", 14336, 10012), ("S034", "Qwen/Qwen3-4B", 30720, 12317), ("S037", "Qwen/Qwen3-8B", 1, 15947),
    ("S040", "Qwen/Qwen3-8B", 6144, 16811), ("S043", "Qwen/Qwen3-8B", 14336, 17963), ("S055", "Qwen/Qwen3-14B", 14336, 30775),
    ("S064", "Qwen/Qwen3-32B", 6144, 64583), ("S070", "Qwen/Qwen3-32B", 30720, 70728), ("S075", "Qwen/Qwen3-30B-A3B", 6144, 59037),
    ("S077", "Qwen/Qwen3-30B-A3B", 14336, 59806),
)  # fmt: skip
_H20 = Device("cuda", "H20", (9, 0), 78)


def _generated(target: str | Callable[[], str], prompt: int, device: Device) -> Generated:
    path = target if isinstance(target, str) else target()
    settings = Generating(prompt=prompt, new_tokens=2048, attention="flash", dtype="bfloat16")
    return generated(path, settings, device, Choices(access=OFFLINE))


def _peak(target: str | Callable[[], str], prompt: int) -> float:
    """As transformers 4.46 loads: each weight in a block of its own."""
    found = _generated(target, prompt, traced_for("cuda", None, None))
    return max(served(trace, found.loaded, warmed=False).peak_allocated for trace in (found.first, found.last))


def _steady(target: str | Callable[[], str], prompt: int) -> float:
    return _generated(target, prompt, _H20).steady


def _blocks_of(predict: Callable[[], Budget], gib: float) -> float:
    """Blocks of the budget that is printed."""
    return predict().pool.num_blocks(round(gib * GIB))


def _driver(share: float) -> float:
    """nvidia-smi's figure of a process that serves Phi-3-mini on an H100 NVL, of which the two runs together tell the total."""
    found = vllm("microsoft/Phi-3-mini-4k-instruct", "H100-NVL", None, version="0.6.6", gpu_memory_utilization=share)
    assert found.device.context is not None
    return found.requested + found.device.context[1] + found.graphs.nbytes


def _overhead(predict: Callable[[], Budget]) -> float:
    found = predict()
    return found.profile.peak + found.non_torch.nbytes


def _llama_cpp_kv() -> float:
    """Qwen3-235B-A22B, 32,768 tokens, keys and values in q8_0."""
    model, _ = understand(_spec("Qwen/Qwen3-235B-A22B", None))
    layout = model.cache
    from graphmem.inference.kv_cache import CacheLayout

    assert isinstance(layout, CacheLayout)
    settings = Running(ctx_size=32768, cache_type_k="q8_0", cache_type_v="q8_0")
    return Buffers(model, layout, shape_of(model, layout), settings).cache[0]


#: Activations and other memory that the same logs print, GiB.
_OVERHEADS = {"K001": 7.38 + 0.13, "K005": 5.56 + 0.13, "K009": 1.49 + 0.09, "K010": 0.75 + 0.03, "K013": 0.9 + 0.05, "K018": 0.88 + 0.03, "K022": 17.06 - 14.9888 + 0.35}  # fmt: skip

_ARTICLE = '"Calculate model memory consumption in training and inference" (davidsajare/david-share)'

CASES: tuple[Case, ...] = (
    *(Case(name, source, "weights", gib * GIB, what, lambda p=p: p().weights.total) for name, source, gib, what, p in _WEIGHTS),  # type: ignore[misc]
    Case("article A", _ARTICLE, "weights", 7.1183 * GIB, "Phi-3-mini-4k, bf16", lambda: vllm("microsoft/Phi-3-mini-4k-instruct", "H100-NVL", None, version="0.6.6").weights.total),
    *(Case(name, source, "available", gib * GIB, what, lambda p=p: p().available) for name, source, gib, _, what, p in _KV),  # type: ignore[misc]
    *(Case(name, source, "overhead", _OVERHEADS[name] * GIB, what, partial(_overhead, p)) for name, source, _, _, what, p in _KV if name in _OVERHEADS),
    *(Case(name, source, "blocks", blocks, f"{gib:g} GiB of KV", partial(_blocks_of, p, gib), 0.005 * GIB / p().pool.block_bytes) for name, source, gib, blocks, p in _BLOCKS),
    *(Case(name, _QWEN25, "peak", gib * GIB, f"{prompt:,} + 2,048 tokens, bf16, flash attention", partial(_peak, target, prompt), 0.005 * GIB) for name, target, prompt, gib in _PEAKS),
    *(Case(name, _QWEN3, "steady", mib * MIB, f"{prompt:,} + 2,048 tokens, bf16, flash attention", partial(_steady, target, prompt), 0.5 * MIB) for name, target, prompt, mib in _STEADY),
    *(Case(f"article A, {share:g}", _ARTICLE, "driver", mb * 10**6, f"process VRAM, Phi-3-mini-4k, vLLM with {share:g}", partial(_driver, share)) for share, mb in ((0.2, 21254.63552), (0.9, 91182.071808))),
)  # fmt: skip

_LITGPT = "litgpt's own generate, whose peak includes its quantizing loader; none of the three engines"
_MEDIUM = "medium confidence; GPTQ's and AWQ's kernels keep buffers of their own, which are not modelled"
NOT_COVERED = {
    **dict.fromkeys(("I003", "I005", "I006", "I008", "I013", "I014", "I016", "I017", "I018", "I019", "I020", "I021"), _LITGPT),
    "I024 … I103 but those above": _MEDIUM,
    "S002 … S080 but those above": "medium confidence (fp8, GPTQ, AWQ), or low: generation ended before 2,048 tokens",
    "W042": "SGLang, which is none of the three engines",
    "W051": "nvidia-smi's rise over a context already measured: row of section 6",
    "K024, K027, K028, K041, K044, K046, K050, K055": "no budget printed, another engine, or the settings are not all known",
}  # fmt: skip
