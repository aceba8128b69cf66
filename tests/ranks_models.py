"""What the ranks of tests/test_parallel_real.py run; every process imports it."""

from __future__ import annotations

from typing import Any

import torch
import transformers

Made = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]


def mlp() -> Made:
    torch.manual_seed(0)
    layers = [
        torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)) for _ in range(4)
    ]
    return torch.nn.Sequential(*layers), (torch.randn(4, 64),), {}


def uneven() -> Made:
    """Rows that no number of ranks divides."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Sequential(torch.nn.Linear(65, 131), torch.nn.GELU(), torch.nn.Linear(131, 65)) for _ in range(3)
    ]
    return torch.nn.Sequential(*layers), (torch.randn(4, 65),), {}


def llama() -> Made:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=128,
        max_position_embeddings=256,
    )  # fmt: skip
    ids = torch.randint(0, 128, (2, 16))
    return transformers.LlamaForCausalLM(config), (), {"input_ids": ids, "labels": ids}


def tied() -> Made:
    """The llama whose head shares the embedding's weight."""
    model, args, kwargs = llama()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model, args, kwargs


def frozen() -> Made:
    """The llama with all but its last layer and head frozen, as in fine-tuning."""
    model, args, kwargs = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2" in name or "lm_head" in name)
    return model, args, kwargs
