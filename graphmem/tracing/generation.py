"""Generating tokens as transformers' ``generate`` does: prefill of the prompt, then one token a step from the cache.

The model's own forward and transformers' own cache classes run; the choice of tokens around them is as in ``generation/utils.py``, greedy or beams.
Prompts have one length, so there is no padding and no mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from graphmem.errors import GraphmemError

#: What transformers calls the cache, as an argument and in outputs: ``cache`` since 5.24; ``cache_params`` of state-space models before.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")

if TYPE_CHECKING:
    from graphmem.tracing.loop import Watch
    from graphmem.workload import Generation


def generate(module: torch.nn.Module, kwargs: Mapping[str, Any], generation: Generation, watch: Watch) -> None:
    """Prefill ``kwargs["input_ids"]`` [batch, tokens], then ``generation.decode_steps`` tokens.

    Raises:
        GraphmemError: the model takes no token ids, or has no cache.
    """
    model: Any = module
    if "input_ids" not in kwargs and not getattr(model.config, "is_encoder_decoder", False):
        raise GraphmemError(f"{type(model).__name__}: generation begins with input_ids, which it does not take")
    with torch.no_grad():
        watch.begin(0)
        watch.enter("prefill")
        given, ids = _prompt(model, kwargs, generation)
        names = inspect.signature(model.forward).parameters
        extra = {"logits_to_keep": 1} if generation.last_logits_only and "logits_to_keep" in names else {}
        positions = _positions(model, given, ids) if "position_ids" in names else None
        cache, named = new_cache(model, generation), _cache_name(model)
        arguments = {**given, **({named: cache} if cache is not None else {}), **extra}
        if positions is not None:
            arguments["position_ids"] = positions
        for step in range(generation.decode_steps + 1):
            if step:
                watch.begin(step)
                watch.enter("decode")
                arguments = {**_following(model, given, ids), named: cache}
                if positions is not None:
                    positions = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
                    arguments["position_ids"] = positions[..., -1:]
            output = model(**arguments, use_cache=True)
            del arguments
            cache = output.get(named)
            if cache is None:
                raise GraphmemError(f"{type(model).__name__}: gives no cache, so it cannot generate from one")
            watch.forward_over(output, None)
            ids = torch.cat([ids, _next(output, cache, generation)], dim=-1)
            del output
        watch.over((cache, ids, given))


def _positions(model: Any, given: Mapping[str, Any], ids: torch.Tensor) -> torch.Tensor | None:
    """Positions of the prompt's tokens as ``generate`` makes them, from a mask without padding; None: an encoder comes first."""
    if "encoder_outputs" in given:
        return None
    own = getattr(model, "_prepare_position_ids_for_generation", None)
    mask = torch.ones(ids.shape, dtype=torch.long, device=ids.device)
    if own is not None:
        found: torch.Tensor = own(ids, {**given, "attention_mask": mask})
        return found
    return mask.cumsum(-1) - 1


def _prompt(model: Any, kwargs: Mapping[str, Any], generation: Generation) -> tuple[dict[str, Any], torch.Tensor]:
    """What the first forward is called with, and the ids so far: of the prompt, or the decoder's first."""
    repeated = {
        name: value.repeat_interleave(generation.sequences, 0) if generation.sequences > 1 else value
        for name, value in kwargs.items()
    }
    if not getattr(model.config, "is_encoder_decoder", False):
        return repeated, repeated["input_ids"]
    ids = repeated.pop("decoder_input_ids", None)
    encoded = model.get_encoder()(**repeated, return_dict=True)
    first = next(iter(repeated.values()))
    start = torch.zeros(first.shape[0], 1, dtype=torch.long, device=first.device) if ids is None else ids
    return {"encoder_outputs": encoded, "decoder_input_ids": start}, start


def _following(model: Any, given: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    if "encoder_outputs" in given:
        return {"encoder_outputs": given["encoder_outputs"], "decoder_input_ids": ids[:, -1:]}
    return {"input_ids": ids[:, -1:]}


def _next(output: Any, cache: Any, generation: Generation) -> torch.Tensor:
    """The next ids [batch, 1]; for beams the cache is put in the order of the beams that go on."""
    logits = output.logits[:, -1].to(copy=True, dtype=torch.float32)
    if generation.beams == 1:
        return torch.argmax(logits, dim=-1)[:, None]
    batch, vocabulary = logits.shape[0] // generation.beams, logits.shape[-1]
    scores = torch.nn.functional.log_softmax(logits, dim=-1)
    joined = scores.view(batch, generation.beams * vocabulary)
    places = torch.topk(joined, 2 * generation.beams).indices
    order = torch.arange(logits.shape[0], device=logits.device)
    cache.reorder_cache(order)
    return (places[:, : generation.beams] % vocabulary).reshape(-1, 1)


def _cache_name(model: Any) -> str:
    """The argument, and the part of the output, that the cache is."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in names), "past_key_values")


def new_cache(model: Any, generation: Generation) -> Any:
    """An empty cache of the class asked for; None: the model makes its own, as ``generate`` lets some do.

    Raises:
        GraphmemError: the model's layers do not go with it.
    """
    import transformers

    config = model.config.get_text_config(decoder=True)
    encodes = getattr(model.config, "is_encoder_decoder", False)
    kind = generation.cache
    if kind == "dynamic":
        # Encoders with decoders make a cache for each; MiniMax has a class of its own.
        return None if encodes or _makes_its_own(model) else transformers.DynamicCache(config=config)
    if encodes:
        raise GraphmemError(f"cache {kind!r}: for decoders only; {type(model).__name__} is an encoder and a decoder")
    if kind == "offloaded":
        return transformers.DynamicCache(config=config, offloading=True)
    if kind in ("static", "offloaded-static"):
        return transformers.StaticCache(
            config=config, max_cache_len=generation.max_cache_len, offloading=kind == "offloaded-static"
        )
    from graphmem.tracing.quantized_cache import quantized_cache

    return quantized_cache(config, kind)


def _makes_its_own(model: Any) -> bool:
    """Models whose cache class is their own (MiniMax)."""
    return not getattr(model, "_supports_default_dynamic_cache", lambda: True)()
