"""The few sizes of a model that engines' buffers follow from, read from its config and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphmem.config import text_config
from graphmem.errors import UnsupportedError
from graphmem.inference.kv_cache import HIDDEN_KEYS, CacheLayout
from graphmem.inference.layer_kinds import HEAD_KEYS, whole
from graphmem.inference.layouts import Attention, LatentAttention
from graphmem.inspection.model import Model

_WIDTH_KEYS = ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "intermediate_size_mlp")
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP_K_KEYS = (
    "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "experts_per_token", "moe_k",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Sizes in elements. ``query`` and ``key_value``: of all heads together, keys alone."""

    hidden: int
    vocabulary: int
    layers: int
    query: int
    key_value: int
    #: Width of a dense MLP, and how many times it is made at once before the activation: 2 where it is gated.
    width: int
    halves: int
    experts: int
    top_k: int
    expert_width: int
    positions: int
    #: Elements of a head that are rotated.
    rotary: int
    has_states: bool
    multimodal: bool

    @property
    def is_dense(self) -> bool:
        return not self.experts


def shape_of(model: Model, layout: CacheLayout) -> Shape:
    """The sizes of a model.

    Raises:
        UnsupportedError: its config does not name its hidden size or vocabulary.
    """
    config = model.spec.config
    text = text_config(config)
    hidden = whole(text, HIDDEN_KEYS)
    vocabulary = whole(text, ("vocab_size",)) or whole(config, ("vocab_size",)) or _rows_of_embedding(model, hidden)
    if hidden is None or vocabulary is None:
        missing = "hidden_size" if hidden is None else "vocab_size"
        raise UnsupportedError(
            f"the config names no {missing}, from which the engine's buffers follow; add it to config.json"
        )
    heads = whole(text, HEAD_KEYS) or 0
    attention = next((c for c in layout.attention if isinstance(c, Attention)), None)
    latent = next((c for c in layout.attention if isinstance(c, LatentAttention)), None)
    size = attention.key_size if attention else (whole(text, ("head_dim",)) or (hidden // heads if heads else 0))
    experts = whole(text, _EXPERT_KEYS) or 0
    width = whole(text, _WIDTH_KEYS) or 4 * hidden
    rotary = latent.rope if latent else _rotary(text, size)
    return Shape(
        hidden=hidden, vocabulary=vocabulary, layers=len(layout.layers), query=heads * size,
        key_value=attention.kv_heads * size if attention else 0, width=width, halves=2 if _is_gated(model) else 1, experts=experts,
        top_k=whole(text, _TOP_K_KEYS) or 1, expert_width=whole(text, ("moe_intermediate_size",)) or width,
        positions=layout.context or 0, rotary=rotary, has_states=bool(layout.states),
        multimodal=any(isinstance(config.get(key), Mapping) for key in ("vision_config", "audio_config", "visual")),
    )  # fmt: skip


def _rows_of_embedding(model: Model, hidden: int | None) -> int | None:
    """The vocabulary of a config that leaves it to its class (Gemma 3 27B)."""
    tables = (t.spec.shape for t in model.tensors if model.roles[t.spec.name] == "embedding" and len(t.spec.shape) == 2)
    return next((rows for rows, width in tables if width == hidden), None)


def _rotary(text: Mapping[str, Any], size: int) -> int:
    """Elements of a head that are rotated; 0 where positions are learned."""
    ropes = [
        text.get(key)
        for key in ("rope_theta", "rope_parameters", "rope_scaling", "rotary_emb_base", "rotary_dim", "rotary_pct")
    ]
    if not any(ropes):
        return 0
    nested = text.get("rope_parameters")
    share = text.get("partial_rotary_factor") or text.get("rotary_pct")
    if share is None and isinstance(nested, Mapping):
        share = nested.get("partial_rotary_factor")
    if isinstance(share, int | float) and 0 < share <= 1:
        return int(size * share)
    return whole(text, ("rotary_dim",)) or size


def _is_gated(model: Model) -> bool:
    """Whether an MLP multiplies two projections, told by the names of its weights."""
    gates = {"gate_proj", "gate_up_proj", "gate_and_up_proj", "w3", "w1w3", "linear_fc1"}
    names = {tensor.spec.module.rpartition(".")[2] for tensor in model.tensors}
    return bool(gates & names)
