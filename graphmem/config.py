"""Keys of a config.json that several rooms read, wherever authors put them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Where multimodal configs keep the language model's part.
_LANGUAGE_KEYS = ("text_config", "llm_config", "language_config", "language_model_config")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config: nested in multimodal ones, the config itself otherwise."""
    for key in _LANGUAGE_KEYS:
        inner = config.get(key)
        if isinstance(inner, Mapping) and inner:
            return inner
    thinker = config.get("thinker_config")
    return text_config(thinker) if isinstance(thinker, Mapping) and thinker else config


def architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names a config gives, of the whole model or of its language model; empty if it gives no list of them."""
    for holder in (config, text_config(config)):
        names = holder.get("architectures")
        if isinstance(names, list) and names:
            return tuple(str(name) for name in names)
    return ()


#: How transformers names classes that write tokens one by one.
_WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSpeechSeq2Seq")


def writes_tokens(config: Mapping[str, Any]) -> bool:
    """Whether a class the config names writes tokens, so that it has an output head and keeps a cache."""
    return any(name.endswith(_WRITERS) for name in architectures(config))


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with ``defaults`` put where the language model's keys are; what the config says itself stays.

    A null stays too where there is no default for it: DeepSeek-V2-Lite's ``q_lora_rank`` is null, and its class would fill in 1536.
    """
    for key in _LANGUAGE_KEYS:
        if isinstance(config.get(key), Mapping) and config[key]:
            return {**config, key: _filled(config[key], defaults)}
    return _filled(config, defaults)


def _filled(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {**defaults, **{k: v for k, v in config.items() if v is not None or k not in defaults}}


def named_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype a config names for its weights, as it spells it (``dtype`` since transformers 5, ``torch_dtype`` before)."""
    for holder in (config, text_config(config)):
        for key in ("dtype", "torch_dtype"):
            if holder.get(key):
                return str(holder[key])
    return None
