"""Active parameters of a mixture of experts: what one token passes through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphmem.config import text_config

_COUNT_KEYS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts", "num_routed_experts")
_ACTIVE_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "top_k_experts",
    "moe_k",
)


def routed_fraction(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """(experts a token uses, experts there are), or None where the config does not say."""
    text = text_config(config)
    ffn = text.get("ffn_config")
    holders = [text, ffn] if isinstance(ffn, Mapping) else [text]
    count = next((h[key] for h in holders for key in _COUNT_KEYS if isinstance(h.get(key), int)), None)
    active = next((h[key] for h in holders for key in _ACTIVE_KEYS if isinstance(h.get(key), int)), None)
    if not count or not active or active > count:
        return None
    return active, count
