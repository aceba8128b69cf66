"""Quantized checkpoints known by their config alone: which modules are packed, and what that takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from graphmem.checkpoint import TensorSpec
from graphmem.dtypes import SAFETENSORS
from graphmem.parameters.packing import packed
from graphmem.parameters.roles import components
from graphmem.sources.load import load

_GATE, _UP, _DOWN = (
    "model.layers.1.mlp.gate",
    "model.layers.1.mlp.experts.0.up_proj",
    "model.layers.1.mlp.experts.0.down_proj",
)
_Q, _SHARED, _TOWER = (
    "model.layers.1.self_attn.q_proj",
    "model.layers.1.mlp.shared_experts.up_proj",
    "model.visual.blocks.0.attn.qkv",
)
_MODULES = (_GATE, _UP, _DOWN, _Q, _SHARED, _TOWER, "model.embed_tokens", "lm_head", "model.layers.1.input_layernorm")
_NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
_INT4 = {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True}
_CT = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": _INT4}},
}
_BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def _packed_modules(quantization: dict[str, Any]) -> set[str]:
    bf16 = SAFETENSORS["BF16"]
    tensors = [TensorSpec(f"{name}.weight", (256,) if "norm" in name else (256, 256), bf16) for name in _MODULES]
    found = packed(tensors, components(tensors), {"quantization_config": quantization})
    assert found is not None
    return {tensor.module for tensor in found if tensor.dtype != bf16 and not tensor.is_buffer}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        # Embeddings, head, router and norms are never taken for linear layers.
        (_BLOCK, {_UP, _DOWN, _Q, _SHARED, _TOWER}),
        ({"quant_method": "fp8", "modules_to_not_convert": ["visual", _Q]}, {_UP, _DOWN, _SHARED}),
        ({**_BLOCK, "ignored_layers": ["model.layers.1.mlp"]}, {_Q, _TOWER}),
        # A listed "gate" or "model.layers.1" is a module, not the beginning of a longer name.
        ({**_BLOCK, "modules_to_not_convert": ["gate", "up", "model.layers.1.mlp.exp"]}, {_UP, _DOWN, _Q, _SHARED, _TOWER}),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head", "visual"]}, {_UP, _DOWN, _Q, _SHARED}),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["shared", "vis"]}, {_UP, _DOWN, _Q}),
        ({**_NVFP4, "exclude_modules": ["*self_attn*", "model.visual*"]}, {_UP, _DOWN, _SHARED}),
        ({**_NVFP4, "ignore": ["language_model.model.layers.1.self_attn*"]}, {_UP, _DOWN, _SHARED, _TOWER}),
        ({**_CT, "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:visual"]}, {_UP, _DOWN, _TOWER}),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {
            _Q: {"quant_algo": "FP8"}, "lm_head": {"quant_algo": "W4A16_NVFP4"}}}, {_Q, "lm_head"}),
    ],
)  # fmt: skip
def test_what_stays_as_it_was(quantization: dict[str, Any], expected: set[str]) -> None:
    assert _packed_modules(quantization) == expected


@pytest.mark.parametrize(
    ("quantization", "nbytes"),
    [
        (_BLOCK, 256 * 512 + 2 * 4 * 4),
        ({"quant_method": "fp8"}, 256 * 512 + 4),
        (_NVFP4, 256 * 512 // 2 + 256 * 512 // 16 + 4 + 4),
        (_CT, 256 * 512 // 2 + 256 * 512 // 32 * 2 + 16),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}}, 256 * 512 + 256 * 2),
        ({"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 32}}}}, 256 * 512 // 2 + 256 * 512 // 32),
    ],
)  # fmt: skip
def test_bytes_of_a_packed_weight(quantization: dict[str, Any], nbytes: int) -> None:
    tensors = [TensorSpec("model.layers.0.mlp.up_proj.weight", (256, 512), SAFETENSORS["BF16"])]
    found = packed(tensors, components(tensors), {"quantization_config": quantization})
    assert found is not None
    assert sum(tensor.nbytes for tensor in found) == nbytes


def test_an_unknown_method_is_not_guessed() -> None:
    assert packed([], {}, {"quantization_config": {"quant_method": "aqlm"}}) is None
    assert packed([], {}, {"expert_dtype": "fp4", "quantization_config": _BLOCK}) is None


@pytest.mark.parametrize(
    ("folder", "blobs"),
    [
        ("finetune__Llama-3.1-8B-bnb-int8", 0),
        ("openai__gpt-oss-20b", 0),
        # bitsandbytes writes one JSON blob a 4-bit weight, some hundred bytes each, which no config tells.
        ("finetune__Llama-2-13B-bnb-nf4", 280),
        ("black-forest-labs__FLUX.1-schnell__bnb-nf4/text_encoder_2", 144),
    ],
)
def test_a_config_alone_gives_the_published_total(shared_models: Path, tmp_path: Path, folder: str, blobs: int) -> None:
    source = shared_models / folder
    shutil.copy(source / "config.json", tmp_path / "config.json")
    (index,) = source.glob("*.index.json")
    counted = sum(tensor.nbytes for tensor in load(tmp_path).sections[0].tensors)
    total = json.loads(index.read_text())["metadata"]["total_size"]
    assert counted <= total <= counted + blobs * 200
