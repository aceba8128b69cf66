"""A config small enough to run: the class's own defaults, shrunk by the names of their fields, sub-configs included."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from transformers import PreTrainedConfig
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

from tests.accuracy.tiny_rules import LAYERS, VOCABULARY, apply, is_width, rule_for

#: Fields that hold ids of special tokens.
_TOKEN = re.compile(r".*(token_ids?|token_index|_token_id_.*)|(boi|eoi|boa|eoa|bos|eos|pad|sep)_(token_)?(id|index)")
#: Fields that hold the width of the whole model, its depth, and the kind of each layer.
_HIDDEN = {"hidden_size", "d_model", "dim", "n_embd", "embed_dim", "hidden_dim"}
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")
_KINDS = {"layer_types", "mlp_layer_types", "layers_block_type", "block_types", "layer_type_list", "attention_layers"}

#: Text configs whose models cut rotary positions in sections that fit the default head only.
_MULTIMODAL_ROPE = {
    "cosmos3_edge_text",
    "glm4v_moe_text",
    "glm4v_text",
    "glm_image_text",
    "glm_ocr_text",
    "paddleocr_vl_text",
    "qwen2_5_omni_text",
    "qwen2_5_omni_talker",
    "qwen2_5_vl_text",
    "qwen2_vl_text",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_omni_moe_text",
    "qwen3_omni_moe_talker_text",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
    "qwen4_exp_text",
}
#: Fields that list layers by index, and how many they may keep.
_INDICES = {
    "deepstack_visual_indexes": 2,
    "fullatt_block_indexes": 1,
    "global_attn_indexes": 1,
    "extract_layers": 3,
    "intermediate_hidden_state_indices": 2,
    "intermediate_layers_indices": 2,
}
#: Fields that count heads, and those that hold what the heads divide.
_WIDTHS = ("embed_dim", "hidden_size", "d_model", "n_embd", "dim")
_HEADS = {
    "num_attention_heads": _WIDTHS,
    "num_heads": _WIDTHS,
    "n_head": _WIDTHS,
    "n_heads": _WIDTHS,
    "encoder_attention_heads": ("d_model", "hidden_size"),
    "decoder_attention_heads": ("d_model", "decoder_hidden_size"),
    "decoder_num_attention_heads": ("decoder_hidden_size",),
}


def tiny_config(
    kind: type[PreTrainedConfig], *, given: Mapping[str, Any], scale: int | None, changes: Mapping[str, Any]
) -> PreTrainedConfig:
    """The shrunk config of `kind(**given)`. Widths are divided by `scale`, or by what the widest hidden size asks for.

    `changes` are set last: by field name, in nested dicts for sub-configs, under `**` for every level that has the field.
    """
    default = kind(**given)
    fields = _shrunk(default, scale or _scale(default), changes)
    text, vision = fields.get("text_config"), fields.get("vision_config")
    if isinstance(text, dict) and isinstance(vision, dict) and "out_hidden_size" in vision and "hidden_size" in text:
        vision["out_hidden_size"] = text["hidden_size"]  # Defaults of the two halves need not fit.
    return kind(**_with_small_tokens(fields))


def _scale(config: PreTrainedConfig) -> int:
    widest = max(_hidden_sizes(config), default=0)
    return 8 if widest < 2048 else 16 if widest < 8192 else 32


def _hidden_sizes(config: PreTrainedConfig) -> Iterator[int]:
    for field in dataclasses.fields(config):
        value = _read(config, field)
        if isinstance(value, PreTrainedConfig):
            yield from _hidden_sizes(value)
        elif field.name in _HIDDEN and isinstance(value, int):
            yield value


def _read(config: PreTrainedConfig, field: dataclasses.Field[Any]) -> Any:
    """The field's value; the class's default where it differs by layer, which the config refuses to answer."""
    try:
        return getattr(config, field.name, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return field.default


def _shrunk(config: PreTrainedConfig, scale: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields to build `config`'s class anew with. What the class computes when it is left out stays left out."""
    found: dict[str, Any] = {}
    everywhere = changes.get("**", {})
    fields = dataclasses.fields(config)
    values = {field.name: _read(config, field) for field in fields}
    for field in fields:
        value = values[field.name]
        if isinstance(value, PreTrainedConfig):
            inner = {"**": everywhere, **(changes.get(field.name) or {})}
            found[field.name] = {"model_type": value.model_type, **_shrunk(value, scale, inner)}
        elif _is_given(field, value):
            found[field.name] = apply(rule_for(field.name), _as_json(value), scale)
    found |= {name: value for name, value in vars(config).items() if isinstance(value, bool) and name[0] != "_"}
    found |= _sampled_layers(values, found)
    found |= _layer_indices(found)
    found |= _backbone_outputs(config, found)
    if isinstance(found.get("image_size"), int | list):
        found["image_size"] = _image(found["image_size"], found.get("patch_size"))
    found |= _fitting_heads(found)
    if config.model_type in _MULTIMODAL_ROPE:
        found["rope_parameters"] = _rope_sections(values["rope_parameters"], found)
    found |= {name: value for name, value in everywhere.items() if name in values}
    found |= {name: value for name, value in changes.items() if name != "**" and not isinstance(found.get(name), dict)}
    return found


def _rope_sections(rope: Mapping[str, Any] | None, shrunk: Mapping[str, Any]) -> dict[str, Any]:
    """Multimodal rotary positions: time, height and width share half a head's rotated channels about as 2 to 3 to 3."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, **(rope or {})}
    head = shrunk.get("head_dim") or shrunk["hidden_size"] // shrunk["num_attention_heads"]
    half = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
    side = half * 3 // 8
    return {**rope, "mrope_section": [half - 2 * side, side, side]}


def _layer_indices(shrunk: Mapping[str, Any]) -> dict[str, Any]:
    """Lists that name layers, cut to layers that are left: the last one where few layers attend to everything."""
    depth = next((shrunk[name] for name in _DEPTHS if isinstance(shrunk.get(name), int)), LAYERS)
    given = {name: len(shrunk[name]) for name in _INDICES if isinstance(shrunk.get(name), list)}
    return {name: list(range(depth))[-min(count, _INDICES[name]) :] for name, count in given.items()}


def _backbone_outputs(config: PreTrainedConfig, shrunk: Mapping[str, Any]) -> dict[str, Any]:
    """The stages that a backbone hands on, as many as before; where layers are stages, a layer for each."""
    indices = getattr(config, "_out_indices", None)
    stages = getattr(config, "stage_names", None)
    if not indices or not stages or len(indices) == 1:
        return {}
    if (depth := next((name for name in _DEPTHS if isinstance(shrunk.get(name), int)), None)) is None:
        return {"out_indices": list(indices)}
    layers = max(LAYERS, len(indices))
    return {depth: layers, "out_indices": list(range(layers + 1))[-len(indices) :]}


def _fitting_heads(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fewer heads where a head would not be a multiple of 4 channels. Key heads keep their share."""
    found: dict[str, Any] = {}
    for heads, widths in _HEADS.items():
        width = next((fields[name] for name in widths if isinstance(fields.get(name), int)), None)
        count = fields.get(heads)
        if width is None or not isinstance(count, int) or count <= 0 or fields.get("head_dim"):
            continue
        fewer = next((n for n in range(count, 0, -1) if not count % n and not width % (4 * n)), 1)
        if width % (4 * count):
            found[heads] = fewer
            shared = fields.get("num_key_value_heads")
            if heads == "num_attention_heads" and isinstance(shared, int):
                found["num_key_value_heads"] = max(1, shared * fewer // count)
    return found


def _as_json(value: Any) -> Any:
    """Lists for tuples, as a config read from its file has them."""
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _is_given(field: dataclasses.Field[Any], value: object) -> bool:
    """Whether the default says a value itself, rather than leaving the class to compute one."""
    if isinstance(value, list | tuple):
        return field.default is not None or (is_width(field.name) and all(isinstance(item, int) for item in value))
    return isinstance(value, int | float) or (isinstance(value, str) and value != field.default)


def _sampled_layers(values: Mapping[str, Any], shrunk: Mapping[str, Any]) -> dict[str, Any]:
    """Lists with an item a layer, cut to one layer of every kind and at least `LAYERS` of them, and the new depth."""
    depth = next((name for name in _DEPTHS if isinstance(values.get(name), int)), None)
    if depth is None or values[depth] <= LAYERS:
        return {}
    lists = {
        name: value
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) == values[depth] and (name in shrunk or name in _KINDS)
    }
    if not lists or (values[depth] < 8 and not _KINDS & set(lists)):
        return {}  # A short list is one of stages.
    kinds = list(zip(*(map(str, value) for name, value in lists.items() if name in _KINDS), strict=True))
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    others = (index for index in range(values[depth]) if index not in firsts)
    chosen = sorted([*firsts, *islice(others, max(0, LAYERS - len(firsts)))])
    return {depth: len(chosen)} | {
        name: [shrunk[name][index] if name in shrunk else value[index] for index in chosen]
        for name, value in lists.items()
    }


def _image(value: Any, patch: Any) -> Any:
    """Four patches a side, at least 64 pixels where the patch is small."""
    if isinstance(value, list):
        return [_image(side, patch) for side in value]
    side = max(patch) if isinstance(patch, list | tuple) else patch or 16
    return min(value, 4 * side if side > 8 else 64)


def _with_small_tokens(fields: dict[str, Any]) -> dict[str, Any]:
    """Ids of special tokens below the vocabulary: the same for the same old id, different for different ones."""
    old = sorted({token for token in special_tokens(fields) if token >= VOCABULARY})
    new = {token: VOCABULARY - 1 - index for index, token in enumerate(old)}

    def replace(value: Any, *, is_token: bool) -> Any:
        if isinstance(value, dict):
            return {name: replace(item, is_token=bool(_TOKEN.fullmatch(str(name)))) for name, item in value.items()}
        if isinstance(value, list):
            return [replace(item, is_token=is_token) for item in value]
        return new.get(value, value) if is_token else value

    return replace(fields, is_token=False)


def special_tokens(value: Any, *, is_token: bool = False) -> Iterator[int]:
    """Every id in the fields, nested, that are named after a token."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from special_tokens(item, is_token=bool(_TOKEN.fullmatch(str(name))))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from special_tokens(item, is_token=is_token)
    elif is_token and isinstance(value, int) and not isinstance(value, bool):
        yield value
