"""llama.cpp's buffers against what llama.cpp itself planned, and against published logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import graphmem
from graphmem.checkpoint import ModelSpec, TensorSpec
from graphmem.dtypes import SAFETENSORS
from graphmem.engines.llama_cpp.buffers import Buffers
from graphmem.engines.llama_cpp.settings import Running
from graphmem.engines.llama_cpp.weights import weights_of
from graphmem.engines.shape import Shape
from graphmem.errors import GraphmemError
from graphmem.inference.kv_cache import CacheLayout, cache_layout
from graphmem.inspection.model import understand

ROWS = json.loads((Path(__file__).parents[1] / "fixtures" / "llama_cpp.json").read_text())["rows"]

#: Where the fullest point leaves holes that the planner cannot fill: (architecture, device) that are beyond 2 %, and how far at most.
HOLES = {("deepseek2", "CUDA"): 0.15, ("deepseek2", "CPU"): 0.15, ("phi3", "CUDA"): 0.13, ("phi3", "CPU"): 0.13, ("llama", "CPU"): 0.06, ("llama", "CUDA"): 0.16, ("gpt-oss", "CPU"): 0.06, ("gemma2", "CUDA"): 0.06, ("gemma3", "CUDA"): 0.06, ("gemma3", "CPU"): 0.06, ("qwen2", "CPU"): 0.06}  # fmt: skip


def _buffers(row: dict[str, Any]) -> Buffers:
    get = row.get
    config: dict[str, Any] = {"gguf": True, "model_type": row["arch"], "num_hidden_layers": row["n_layer"], "hidden_size": row["n_embd"], "vocab_size": row["n_vocab"], "max_position_embeddings": 2**20}  # fmt: skip
    if row["n_head"]:
        config |= {
            "num_attention_heads": row["n_head"],
            "num_key_value_heads": row["n_head_kv"],
            "head_dim": row["head_dim"],
        }
    if row["arch"] in ("gemma2", "gemma3", "gpt-oss"):
        config["sliding_window"] = row["swa"]
    if row["arch"] == "mamba":
        config |= {
            "ssm_inner_size": row["d_inner"],
            "ssm_state_size": row["d_state"],
            "ssm_conv_kernel": row["d_conv"],
            "state_size": row["d_state"],
        }
    if row["arch"] == "deepseek2":
        config |= {
            "kv_lora_rank": row["kv_lora"],
            "qk_rope_head_dim": row["rope"],
            "qk_nope_head_dim": row["nope"],
            "q_lora_rank": get("q_lora"),
        }
    tensors = [TensorSpec("token_embd.weight", (row["n_vocab"], row["n_embd"]), SAFETENSORS["F16"])]
    if get("fused"):
        tensors.append(TensorSpec("blk.0.attn_qkv.weight", (3, row["n_embd"]), SAFETENSORS["F16"]))
    model, _ = understand(ModelSpec(tuple(tensors), config))
    layout = cache_layout(config)
    assert isinstance(layout, CacheLayout)
    shape = Shape(row["n_embd"], row["n_vocab"], row["n_layer"], row["n_head"] * row["head_dim"], row["n_head_kv"] * row["head_dim"], row["n_ff"], 2, row["n_expert"], row["n_expert_used"], row["n_ff_exp"], 0, 0, False, False)  # fmt: skip
    settings = Running(row["n_ctx"], row["n_batch"], row["n_ubatch"], row["n_seq_max"], None, bool(row["flash_attn"]), row["type_k"], row["type_v"], bool(row["kv_unified"]), bool(row["swa_full"]), not row["n_outputs_max"])  # fmt: skip
    return Buffers(model, weights_of(model, len(layout.layers)), layout, shape, settings, row["device"] == "CUDA")


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda r: f"{r['model']} {r['device']} {r['n_ctx']}/{r['n_ubatch']} {r['type_k']}"
)
def test_buffers_are_llama_cpps_own(row: dict[str, Any]) -> None:
    found = _buffers(row)
    assert sum(found.cache) == row["kv_bytes"]
    assert found.output == row["output_bytes"]
    error = abs(found.compute / row["compute_bytes"] - 1)
    assert error <= 0.02 or error <= HOLES.get((row["arch"], row["device"]), 0.02), f"compute buffer off by {error:.1%}"
    if row["host_compute_bytes"]:
        assert found.host_compute == pytest.approx(row["host_compute_bytes"], rel=0.02)


def test_most_compute_buffers_are_exact() -> None:
    errors = [abs(_buffers(row).compute / row["compute_bytes"] - 1) for row in ROWS]
    assert sum(error < 0.001 for error in errors) / len(errors) > 0.8
    assert sum(error <= 0.02 for error in errors) / len(errors) > 0.9


MIB = 2**20


def test_published_logs() -> None:
    """Mistral 7B, fedora-copr/logdetective#106: KV 4,096 MiB and compute 2,144 MiB at 32,768 tokens; Llama 3 8B with flash attention: 258.50 MiB."""
    found = graphmem.infer(
        "mistralai/Mistral-7B-v0.1",
        engine="llama.cpp",
        ctx_size=32768,
        batch_size=512,
        flash_attention=False,
        all_logits=True,
        quantization="Q8_0",
        offline=True,
    )
    # The model's own window is not used by llama.cpp for it, and counts as none at 32,768 tokens here either.
    assert found.item("activations").nbytes / MIB == pytest.approx(2144.0, rel=0.01)
    llama = graphmem.infer(
        "meta-llama/Meta-Llama-3-8B",
        engine="llama.cpp",
        ctx_size=8192,
        all_logits=True,
        quantization="Q8_0",
        offline=True,
    )
    assert llama.item("activations").nbytes / MIB == pytest.approx(258.5, abs=0.01)
    assert llama.item("cache").nbytes == 8192 * 131072


def test_layers_that_stay_in_host_memory() -> None:
    def run(layers: int | None) -> graphmem.Estimate:
        return graphmem.infer(
            "meta-llama/Llama-3.2-3B-Instruct",
            engine="llama.cpp",
            quantization="Q8_0",
            ctx_size=4096,
            gpu_layers=layers,
            offline=True,
        )

    whole, half, none = run(None), run(15), run(0)
    assert whole.item("cache").nbytes == 4096 * 28 * 2 * 8 * 128 * 2
    # Fifteen of 29: the output layer and the last fourteen.
    assert half.item("cache").nbytes * 2 == whole.item("cache").nbytes
    assert none.item("cache").nbytes == none.item("weights").nbytes == 0
    assert whole.item("weights").nbytes > half.item("weights").nbytes > whole.item("weights").nbytes // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_type_k": "q3"}, "cache-type-k 'q3': There are f32, f16, bf16, q8_0"),
        (
            {"cache_type_v": "q8_0", "flash_attention": False},
            "cache-type-v q8_0: llama.cpp quantizes values with flash attention only",
        ),
        ({"ctx_size": 10**6}, "ctx-size 1,000,000: the model was trained for 131,072 tokens a slot; lower it"),
        ({"ctx_size": "8k"}, "ctx-size '8k': is a whole number: 8192"),
        (
            {"quantization": "Q4_K_M"},
            "quantization 'Q4_K_M': a mixture of types that differs by model; give the GGUF file itself",
        ),
        ({"parallel": 0}, "parallel 0: must be 1 or more"),
        ({"gpu_layers": -1}, "gpu-layers -1: must be 0 or more"),
        ({"prompt": 5}, "prompt: an option of engine transformers; this is llama.cpp"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphmemError) as error:
        graphmem.infer("meta-llama/Llama-3.1-8B", engine="llama.cpp", offline=True, **options)
    assert message in str(error.value)


def test_what_llama_cpp_cannot_be_told_of_is_refused(shared_models: Path) -> None:
    with pytest.raises(GraphmemError, match=r"compressed attention \(DeepSeek-V4\)|quantized checkpoint"):
        graphmem.infer(str(shared_models / "deepseek-ai__DeepSeek-V4-Flash"), engine="llama.cpp", ctx_size=4096)


def test_experts_in_host_memory_are_copied_to_the_gpu() -> None:
    """With --cpu-moe a batch's experts run on the GPU from a copy of a layer's largest tensor (ggml's op_offload)."""
    run = {"engine": "llama.cpp", "gpu": "A100-80GB", "ctx_size": 4096, "quantization": "Q8_0", "offline": True}
    host = graphmem.infer("mistralai/Mixtral-8x7B-v0.1", cpu_moe=True, **run)
    gpu = graphmem.infer("mistralai/Mixtral-8x7B-v0.1", cpu_moe=False, **run)
    copy = 8 * 4096 * 14336 * 34 // 32  # of Q8_0: 34 bytes for 32 weights
    grown = host.item("activations").nbytes - gpu.item("activations").nbytes
    assert host.item("weights").nbytes < gpu.item("weights").nbytes / 10
    assert copy * 0.5 < grown
    assert host.item("activations").nbytes > copy


def test_cross_attention_is_refused(shared_models: Path) -> None:
    with pytest.raises(GraphmemError, match="llama.cpp does not serve models with cross-attention"):
        graphmem.infer(str(shared_models / "meta-llama__Llama-3.2-11B-Vision"), engine="llama.cpp", ctx_size=4096)


def test_an_encoder_is_in_a_file_of_its_own(tmp_path: Path) -> None:
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 512, "max_position_embeddings": 256}}  # fmt: skip
    text = {"language_model.model.embed_tokens.weight": (512, 256), "language_model.lm_head.weight": (512, 256), "language_model.model.norm.weight": (256,)}  # fmt: skip
    for name, shape in (("q_proj", (256, 256)), ("k_proj", (256, 256)), ("v_proj", (256, 256)), ("o_proj", (256, 256))):
        text[f"language_model.model.layers.0.self_attn.{name}.weight"] = shape
    tower = {"vision_tower.vision_model.embeddings.patch_embedding.weight": (64, 3, 14, 14), "multi_modal_projector.linear_1.weight": (256, 64)}  # fmt: skip
    buffers = []
    for folder, shapes in (("text", text), ("both", text | tower)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        save_file(
            {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()},
            tmp_path / folder / "model.safetensors",
        )
        found = graphmem.infer(str(tmp_path / folder), engine="llama.cpp", gpu="T4")
        buffers.append(found.item("weights").nbytes)
        assert ("mmproj" in found.origin) == (folder == "both")
    assert buffers[0] == buffers[1]
