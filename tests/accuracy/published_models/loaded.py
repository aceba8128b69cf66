"""Models that are on the device and have not run yet."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GraniteMoeHybridConfig, Qwen3_5Config
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig, Qwen3_5VisionConfig

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


class Loaded(nn.Module):
    """A model that does nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def granite() -> nn.Module:
    """granite-4.0-h-micro in 16 bits with LoRA r=32 in fp32: 3,193,100,032 parameters, as the source prints."""
    layers = ["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)]
    config = GraniteMoeHybridConfig(
        hidden_size=2048, num_hidden_layers=40, layer_types=layers, num_attention_heads=32, num_key_value_heads=8,
        shared_intermediate_size=8192, num_local_experts=0, num_experts_per_tok=0, mamba_n_heads=64, mamba_d_head=64,
        mamba_d_state=128, mamba_n_groups=1, vocab_size=100352, tie_word_embeddings=True, position_embedding_type="nope",
    )  # fmt: skip
    return _adapted(AutoModelForCausalLM, config, LoraConfig(r=32, target_modules=_ATTENTION))


def qwen() -> nn.Module:
    """Qwen3.5-27B with its images' encoder in bf16, LoRA r=8 in fp32: 27,400,899,824 parameters, as the source prints."""
    config = Qwen3_5Config(
        text_config=Qwen3_5TextConfig(
            hidden_size=5120, intermediate_size=17408, num_hidden_layers=64, num_attention_heads=24, num_key_value_heads=4,
            head_dim=256, linear_num_value_heads=48, vocab_size=248320,
        ).to_dict(),
        vision_config=Qwen3_5VisionConfig(depth=27, hidden_size=1152, intermediate_size=4304, out_hidden_size=5120).to_dict(),
    )  # fmt: skip
    targets = [*_ATTENTION, "gate_proj", "up_proj", "down_proj", "out_proj"]
    return _adapted(AutoModelForImageTextToText, config, LoraConfig(r=8, target_modules=targets))


def _adapted(auto: Any, config: Any, adapter: LoraConfig) -> nn.Module:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers under names it used to have
        return get_peft_model(auto.from_config(config).to(torch.bfloat16), adapter)
