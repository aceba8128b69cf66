"""A transformer as Megatron-Core builds it: sizes from a Hugging Face config, in its own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphmem.config import text_config
from graphmem.errors import UnsupportedError


@dataclass(frozen=True)
class Latent:
    """Multi-latent attention (DeepSeek): ranks of the compressed queries and keys/values, and sizes of a head's parts."""

    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True)
class Experts:
    """A mixture of experts. ``ffn`` and ``shared``: widths of one expert, and of the shared one; ``dense``: layers that have none, from the first."""

    count: int
    top_k: int
    ffn: int
    shared: int = 0
    dense: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder. Defaults are those of a Llama: RMSNorm, gated MLP, rotary positions, no biases, head of its own."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocabulary: int
    gated: bool = True
    rms_norm: bool = True
    bias: bool = False
    tied: bool = False
    #: Rows of a learned table of positions; 0: rotary.
    positions: int = 0
    #: Norms of queries and keys; of MLA, of what they are compressed to.
    qk_norm: bool = False
    latent: Latent | None = None
    experts: Experts | None = None
    #: Layers that predict further tokens (multi-token prediction), behind the last one.
    predictors: int = 0
    #: Biases of queries, keys and values alone (Qwen 2).
    qkv_bias: bool = False

    def has_experts(self, layer: int) -> bool:
        """Whether the MLP of a layer is a mixture."""
        return self.experts is not None and layer not in self.experts.dense


#: Model types whose layers are those of a Llama, but for what their configs say.
_LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v2", "deepseek_v3")


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        UnsupportedError: of a kind that graphmem cannot say in Megatron's words.
    """
    text = text_config(config)
    kind = text.get("model_type")
    if kind == "gpt2":
        return _gpt2(text)
    if kind not in _LLAMAS:
        raise UnsupportedError(
            f"model type {kind!r}: --engine megatron knows {', '.join((*_LLAMAS, 'gpt2'))}; --engine torch traces the model's own code"
        )
    hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
    return Architecture(
        hidden=hidden, layers=int(text["num_hidden_layers"]), heads=heads, kv_heads=int(text.get("num_key_value_heads") or heads),
        head_size=int(text.get("head_dim") or hidden // heads), ffn=int(text["intermediate_size"]), vocabulary=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings", False)), qkv_bias=kind in ("qwen2", "qwen2_moe") or bool(text.get("attention_bias")), qk_norm=kind in ("qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3"), latent=_latent(text),
        experts=_experts(text, kind), predictors=int(text.get("num_nextn_predict_layers") or 0),
    )  # fmt: skip


def _gpt2(text: Mapping[str, Any]) -> Architecture:
    hidden, heads = int(text["n_embd"]), int(text["n_head"])
    return Architecture(
        hidden, int(text["n_layer"]), heads, heads, hidden // heads, int(text.get("n_inner") or 4 * hidden), int(text["vocab_size"]),
        gated=False, rms_norm=False, bias=True, tied=True, positions=int(text["n_positions"]),
    )  # fmt: skip


def _latent(text: Mapping[str, Any]) -> Latent | None:
    if not text.get("kv_lora_rank"):
        return None
    return Latent(
        text.get("q_lora_rank"),
        text["kv_lora_rank"],
        text["qk_nope_head_dim"],
        text["qk_rope_head_dim"],
        text["v_head_dim"],
    )


def _experts(text: Mapping[str, Any], kind: str) -> Experts | None:
    count = text.get("num_local_experts") or text.get("num_experts") or text.get("n_routed_experts")
    if not count:
        return None
    ffn = int(text.get("moe_intermediate_size") or text["intermediate_size"])
    shared = int(text.get("shared_expert_intermediate_size") or ffn * int(text.get("n_shared_experts") or 0))
    if kind.startswith("deepseek"):
        dense = frozenset(range(int(text.get("first_k_dense_replace") or 0)))
    else:
        step, alone = int(text.get("decoder_sparse_step") or 1), text.get("mlp_only_layers") or ()
        dense = frozenset(i for i in range(int(text["num_hidden_layers"])) if i in alone or (i + 1) % step)
    return Experts(int(count), int(text["num_experts_per_tok"]), ffn, shared, dense)
