"""Active parameters of a mixture of experts: what one token passes through."""

from __future__ import annotations

import re
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


def is_prediction_layer(name: str, layers: Any) -> bool:
    """Whether a tensor belongs to an extra layer that predicts further tokens (MTP), which plain decoding does not run.

    Checkpoints call it ``mtp…`` or number it after the last of the config's ``layers``.
    """
    if re.search(r"(^|\.)mtp(_layers)?\.", name):
        return True
    numbered = re.match(r"(?:model\.|language_model\.)*layers\.(\d+)\.", name)
    return bool(numbered and isinstance(layers, int) and int(numbered[1]) >= layers)
