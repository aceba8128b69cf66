"""Which kind of token mixer each layer has, from a config: listed layer by layer, given by a rule, or left to a class's default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")

#: How configs name a layer's token mixer, and what each keeps.
FULL = {"full_attention", "attention", "full", "global", "global_attention", "indexed_attention", "*"}
SLIDING = {"sliding_attention", "sliding_window_attention", "local", "local_attention", "sliding"}
CHUNKED = {"chunked_attention"}
STATE = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "M", "kda", "ssm", "short_conv"}
NOTHING = {"mlp", "moe", "-", "E"}
#: Attention and a recurrence side by side (Falcon-H1, Zamba2's shared blocks).
BOTH = {"hybrid"}
#: DeepSeek-V4, by transformers' names; a config gives the ratios instead.
COMPRESSED = {"compressed_sparse_attention", "heavily_compressed_attention"}

#: Alternation that released configs leave to the defaults of transformers' config classes: every n-th layer sees everything.
_DEFAULT_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "olmo3": 4,
    "cohere2": 4,
    "gpt_oss": 2,
    "gpt-oss": 2,
    "gemma3n": 5,
    "gemma3n_text": 5,
}


class NotWhole(Exception):
    """A size in the config that is no whole number above zero (three published configs carry Infinity)."""


def whole(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first of ``keys`` that holds a size; null, false, 0 and lists (one entry a layer) count as absent."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if value and not isinstance(value, list | bool):
            raise NotWhole(f"the config's {key} is {value}, not a whole number above zero")
    return None


def layer_kinds(text: Mapping[str, Any], count: int, notes: list[str]) -> list[str] | None:
    """One word a layer, in the config's own vocabulary; None (and a note that says why) if it uses an unknown one."""
    kinds = _spelled_out(text, count) or _by_rule(text, count)
    known = FULL | SLIDING | CHUNKED | STATE | NOTHING | BOTH | COMPRESSED | {"image_cross_attention"}
    for kind in kinds:
        if kind not in known:
            notes.append(f"the config has layers of type {kind!r}, which graphmem does not know")
            return None
    if len(kinds) != count:
        notes.append(f"the config lists {len(kinds)} layer types for {count} layers")
        return None
    return kinds


def _spelled_out(text: Mapping[str, Any], count: int) -> list[str] | None:
    """Configs that list every layer."""
    for key in ("layer_types", "layers_block_type", "block_types"):
        value = text.get(key)
        if isinstance(value, list) and value:
            listed = [str(kind) for kind in value]
            if key == "block_types":  # RecurrentGemma, whose attention is local
                listed = [
                    "sliding_attention" if kind == "attention" and text.get("attention_window_size") else kind
                    for kind in listed
                ]
                return (listed * count)[:count]
            return listed
    ratios = text.get("compress_ratios")
    if (
        isinstance(ratios, list) and ratios
    ):  # DeepSeek-V4: 0 is a plain window; entries beyond the layers are prediction layers
        names = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
        return [names.get(ratio, f"compressed by {ratio}") for ratio in ratios[:count]]
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):  # Nemotron-H: M mamba, * attention, - MLP, E experts
        return list(pattern)
    kinds = text.get("attn_type_list")
    if isinstance(kinds, list):  # MiniMax: 1 is softmax attention, 0 lightning attention
        return ["full_attention" if kind else "linear_attention" for kind in kinds]
    for key, other in (("full_attn_idxs", "conv"), ("attn_layer_indices", "mamba")):  # LFM2, Bamba: which layers attend
        if isinstance(text.get(key), list):
            return ["full_attention" if number in text[key] else other for number in range(count)]
    linear = text.get("linear_attn_config")
    if isinstance(linear, Mapping) and isinstance(linear.get("full_attn_layers"), list):  # Kimi Linear, counted from 1
        return ["full_attention" if number + 1 in linear["full_attn_layers"] else "kda" for number in range(count)]
    crossing = text.get("cross_attention_layers")
    if isinstance(crossing, list):  # Mllama
        return ["image_cross_attention" if number in crossing else "full_attention" for number in range(count)]
    hybrid = text.get("hybrid_layer_pattern")
    if isinstance(hybrid, list):  # MiMo-V2-Flash: 1 is sliding
        return ["sliding_attention" if kind else "full_attention" for kind in hybrid]
    blocks = text.get("block_configs")
    if isinstance(blocks, list):  # Nemotron-NAS: some layers have no attention at all
        return ["mlp" if _attends_not(block.get("attention") or {}) else "full_attention" for block in blocks]
    return None


def _attends_not(attention: Mapping[str, Any]) -> bool:
    """Nemotron-NAS: a layer without attention, or with a linear map in its place."""
    return bool(attention.get("no_op") or attention.get("replace_with_linear"))


def _by_rule(text: Mapping[str, Any], count: int) -> list[str]:
    """Configs that give a period, or nothing because their code alternates."""
    if interval := text.get("full_attention_interval"):  # Qwen3-Next
        return ["full_attention" if (n + 1) % interval == 0 else "linear_attention" for n in range(count)]
    if period := text.get("attn_layer_period"):  # Jamba
        offset = text.get("attn_layer_offset", 0)
        return ["attention" if n % period == offset else "mamba" for n in range(count)]
    if "state_size" in text and not text.get("num_attention_heads"):  # Mamba, Mamba-2
        return ["mamba"] * count
    if "mamba_d_ssm" in text:  # Falcon-H1
        return ["hybrid"] * count
    if "attention_hidden_size" in text and not whole(text, HEAD_KEYS):  # RWKV
        return ["recurrent"] * count
    if text.get("attention_chunk_size"):  # Llama 4: layers without RoPE see everything, by default every fourth
        ropes = text.get("no_rope_layers")
        if isinstance(ropes, list) and ropes:
            return ["chunked_attention" if rope else "full_attention" for rope in ropes]
        return ["full_attention" if (n + 1) % 4 == 0 else "chunked_attention" for n in range(count)]
    window = text.get("sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return ["full_attention"] * count
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
    if pattern is None:
        pattern = _DEFAULT_PERIODS.get(str(text.get("model_type", "")))
    if isinstance(pattern, str) and set(pattern) <= {"L", "G"} and pattern:  # Exaone 4: a letter a layer, over and over
        return ["full_attention" if pattern[n % len(pattern)] == "G" else "sliding_attention" for n in range(count)]
    if isinstance(pattern, int) and pattern > 1:
        return ["full_attention" if (n + 1) % pattern == 0 else "sliding_attention" for n in range(count)]
    if text.get("use_sliding_window"):  # Qwen 2: only the layers from max_window_layers on
        first = text.get("max_window_layers", 0)
        return ["sliding_attention" if n >= first else "full_attention" for n in range(count)]
    return ["sliding_attention"] * count
