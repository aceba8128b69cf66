"""A GGUF header's key-values in the words of a config.json, so that one reader of configs serves both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: llama.cpp's key (after the architecture's prefix) → the config key it means (gguf-py, constants.py).
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "v_head_dim",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "full_attention_interval": "full_attention_interval",
    "rope.dimension_count": "rotary_dim",
    "ssm.conv_kernel": "ssm_conv_kernel",
    "ssm.inner_size": "ssm_inner_size",
    "ssm.state_size": "ssm_state_size",
    "ssm.group_count": "ssm_group_count",
    "shortconv.l_cache": "conv_L_cache",
    "vocab_size": "vocab_size",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
}


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the header implies; ``gguf`` marks where it came from."""
    architecture = str(metadata.get("general.architecture", ""))
    config: dict[str, Any] = {"model_type": architecture, "gguf": True}
    for key, name in _KEYS.items():
        if (value := metadata.get(f"{architecture}.{key}")) is not None:
            config[name] = value
    if metadata.get(f"{architecture}.attention.causal") is False:
        config["architectures"] = [f"{architecture} encoder"]
        config.pop("num_key_value_heads", None)
    if config.get("kv_lora_rank"):
        config["qk_rope_head_dim"] = config.get("rotary_dim")
    if not metadata.get(f"{architecture}.attention.head_count") and metadata.get(f"{architecture}.ssm.state_size"):
        config["state_size"] = metadata[f"{architecture}.ssm.state_size"]
    heads = config.get("num_key_value_heads")
    if isinstance(heads, list):  # one entry a layer; none where a state-space layer stands
        config["layer_types"] = ["full_attention" if count else "mamba" for count in heads]
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, list):  # one entry a layer: true where it slides
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    if chunk := metadata.get(f"{architecture}.attention.chunk_size"):
        config["unplaced_sliding_window"] = chunk
    window = metadata.get(f"{architecture}.attention.sliding_window")
    if window:
        # Which layers use it is in llama.cpp's code for most architectures, not in the file.
        placed = "sliding_window_pattern" in config or architecture.startswith(
            ("gemma2", "gemma3", "gpt-oss", "cohere2")
        )
        config["sliding_window" if placed else "unplaced_sliding_window"] = window
    return config
