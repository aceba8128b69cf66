"""A config → the state of its recurrent layers. Recognised by the keys that size the state, never by the model's name.

Shapes are those of transformers' own modules; `tests/test_kv_cache.py` runs them. Engines that store a state otherwise say so in their own rooms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphmem.inference.layer_kinds import whole
from graphmem.inference.layouts import State


def state_of(text: Mapping[str, Any]) -> State | None:
    """The state of one recurrent layer of this (language model's) config; None where its keys are not known."""
    for known in (_gguf, _gated_delta_net, _kimi_delta, _mamba2, _mamba, _short_convolution, _lru, _lightning, _rwkv):
        if (state := known(text)) is not None:
            return state
    return None


def _gguf(text: Mapping[str, Any]) -> State | None:
    """A GGUF header's own words for any state-space layer (llama-hparams.cpp, n_embd_r and n_embd_s)."""
    inner, state, kernel = (whole(text, (key,)) for key in ("ssm_inner_size", "ssm_state_size", "ssm_conv_kernel"))
    if not text.get("gguf") or not (inner and state and kernel):
        return None
    groups = whole(text, ("ssm_group_count",)) or 0
    return State("state space", (inner + 2 * groups * state, kernel), (inner, state), "float32")


def _gated_delta_net(text: Mapping[str, Any]) -> State | None:
    """Qwen3-Next, Qwen3.5, OLMo-Hybrid: Yang et al. 2024, arXiv 2412.06464."""
    kernel = whole(text, ("linear_conv_kernel_dim",))
    key_heads, key_size = whole(text, ("linear_num_key_heads",)), whole(text, ("linear_key_head_dim",))
    value_heads, value_size = whole(text, ("linear_num_value_heads",)), whole(text, ("linear_value_head_dim",))
    if not (kernel and key_heads and key_size and value_heads and value_size):
        return None
    channels = 2 * key_heads * key_size + value_heads * value_size
    return State("gated delta net", (channels, kernel), (value_heads, key_size, value_size), "float32")


def _kimi_delta(text: Mapping[str, Any]) -> State | None:
    """Kimi Linear (KDA): a convolution each for queries, keys and values."""
    linear = text.get("linear_attn_config")
    if not isinstance(linear, Mapping):
        return None
    heads, size, kernel = (whole(linear, (key,)) for key in ("num_heads", "head_dim", "short_conv_kernel_size"))
    if not (heads and size):
        return None
    return State("delta attention (KDA)", (3 * heads * size, kernel or 4), (heads, size, size), "float32")


_STATE_SIZE = ("mamba_d_state", "ssm_state_size", "state_size")
_KERNEL = ("mamba_d_conv", "conv_kernel", "conv_dimension")


def _mamba2(text: Mapping[str, Any]) -> State | None:
    """Mamba-2 (Dao and Gu 2024): the convolution runs over the inputs and both group projections."""
    groups = whole(text, ("mamba_n_groups", "mamba_ngroups", "n_groups"))
    heads = whole(text, ("mamba_n_heads", "n_mamba_heads", "mamba_num_heads")) or (
        whole(text, ("num_heads",)) if not text.get("num_attention_heads") else None
    )
    state, kernel = whole(text, _STATE_SIZE), whole(text, _KERNEL)
    inner = whole(text, ("mamba_d_ssm",)) or _inner(text)
    size = _number(text, ("mamba_d_head", "mamba_headdim", "mamba_head_dim"))
    heads = heads or (inner // size if inner and size else None)
    if not (groups and heads and state and kernel):
        return None
    if size is None and not text.get("num_attention_heads"):
        size = whole(text, ("head_dim",))
    size = size or (inner // heads if inner else None)
    if not size:
        return None
    return State("Mamba-2", (heads * size + 2 * groups * state, kernel), (heads, size, state), "float32")


def _mamba(text: Mapping[str, Any]) -> State | None:
    """Mamba (Gu and Dao 2023), as in Jamba, Falcon-Mamba, Zamba."""
    state, kernel, inner = whole(text, _STATE_SIZE), whole(text, _KERNEL), _inner(text)
    return State("Mamba", (inner, kernel), (inner, state), "float32") if state and kernel and inner else None


def _inner(text: Mapping[str, Any]) -> int | None:
    """Channels of a Mamba mixer: its expansion × the hidden size (``"auto"`` is 2); a model of nothing else may give them outright (Falcon-Mamba)."""
    hidden, expand = (
        whole(text, ("hidden_size", "d_model")),
        _number(text, ("mamba_expand", "expand", "expansion_factor")),
    )
    given = None if text.get("num_attention_heads") else whole(text, ("intermediate_size", "d_inner"))
    return given or (hidden * expand if hidden and expand else None)


def _number(text: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """As `whole`, but ``"auto"`` counts as absent."""
    return whole({key: text.get(key) for key in keys if text.get(key) != "auto"}, keys)


def _short_convolution(text: Mapping[str, Any]) -> State | None:
    """LFM2: gated convolutions and no recurrence."""
    kernel, hidden = whole(text, ("conv_L_cache",)), whole(text, ("conv_dim", "hidden_size"))
    return State("short convolution", (hidden, kernel)) if kernel and hidden else None


def _lru(text: Mapping[str, Any]) -> State | None:
    """RecurrentGemma (Griffin, De et al. 2024): a gated linear recurrent unit behind a convolution; one input less than its kernel is kept."""
    width, kernel = whole(text, ("lru_width",)), whole(text, ("conv1d_width",))
    return State("RG-LRU", (width, kernel - 1), (width,), "float32") if width and kernel else None


def _lightning(text: Mapping[str, Any]) -> State | None:
    """MiniMax (lightning attention, Qin et al. 2024): a matrix a head."""
    signs = ("layernorm_linear_attention_alpha", "linear_attn_alpha_factor")
    heads, size, hidden = (
        whole(text, ("num_attention_heads",)),
        whole(text, ("head_dim",)),
        whole(text, ("hidden_size",)),
    )
    size = size or (hidden // heads if hidden and heads else None)
    if not any(key in text for key in signs) or not heads or not size:
        return None
    return State("lightning attention", None, (heads, size, size))


def _rwkv(text: Mapping[str, Any]) -> State | None:
    """RWKV-4 (Peng et al. 2023): two shifted inputs in the model's dtype, here counted as a convolution's; numerator, denominator and maximum in fp32."""
    attention, hidden = whole(text, ("attention_hidden_size",)), whole(text, ("hidden_size",))
    if not attention or not hidden or text.get("num_attention_heads"):
        return None
    return State("RWKV", (hidden, 2), (3, attention), "float32")
