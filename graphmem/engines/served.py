"""What every engine asks of a checkpoint: that it is one model with a config, and that its cache can be laid out."""

from __future__ import annotations

from graphmem.checkpoint import Checkpoint
from graphmem.config import text_config
from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.inference.kv_cache import CacheLayout, NoCache
from graphmem.inspection.model import Model, understand


def model_of(checkpoint: Checkpoint) -> Model:
    """The one model of a checkpoint.

    Raises:
        UnsupportedError: it holds several, or none that has a config.
    """
    specs = [spec for spec in checkpoint.sections if spec.config]
    if len(checkpoint.sections) != 1 or not specs:
        what = "holds several models" if len(checkpoint.sections) > 1 else "has no config.json"
        raise UnsupportedError(f"{checkpoint.target}: {what}; engines serve one language model")
    return understand(specs[0])[0]


def layout_of(model: Model) -> CacheLayout:
    """The model's cache.

    Raises:
        GraphmemError: none can be laid out; says what its class would assume for sizes that the config leaves out.
    """
    if isinstance(model.cache, NoCache):
        assumed = _assumed(model) if model.cache.missing else ""
        raise GraphmemError(f"no cache can be laid out: {model.cache.reason}{assumed}")
    return model.cache


def _assumed(model: Model) -> str:
    """What transformers' class would assume for the sizes that a config leaves out; empty where it is not installed."""
    text = text_config(model.spec.config)
    try:
        from transformers import CONFIG_MAPPING

        defaults = CONFIG_MAPPING[text.get("model_type")]()
    except Exception:
        return ""
    keys = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size")
    missing = [
        f"{key} {value}" for key in keys if key not in text and isinstance(value := getattr(defaults, key, None), int)
    ]
    return (
        f"; its class in transformers would assume {', '.join(missing)}: write them into config.json" if missing else ""
    )
