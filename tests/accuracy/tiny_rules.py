"""How each field of a transformers config shrinks, told by the field's name. The first rule whose pattern matches decides.

Widths are divided by one number everywhere, so that heads still divide them and parts still add up; counts are capped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

#: What counts are capped at.
VOCABULARY = 128
LAYERS = 2
EXPERTS = 8
POSITIONS = 512
WINDOW = 8
#: A rule gives the new value of a number; the second argument is what widths are divided by.
Rule = Callable[[float, int], float]


def _keep(value: float, scale: int) -> float:
    return value


def _cap(limit: int) -> Rule:
    return lambda value, scale: min(value, limit)


def _width(value: float, scale: int) -> float:
    return value if value <= 2 * scale or value != int(value) else -(-int(value) // scale)


def _head(value: float, scale: int) -> float:
    """Widths of heads stay multiples of 4, for two rotary axes of sine and cosine."""
    return -(-int(value) // (4 * scale)) * 4 if value >= 4 else value


def _matrix_width(value: float, scale: int) -> float:
    """Grouped matrix products ask for rows of a multiple of 16 bytes."""
    return -(-int(value) // (8 * scale)) * 8 if value > 8 * scale else value


def _set(constant: float) -> Rule:
    return lambda value, scale: constant


_RULES: tuple[tuple[str, Rule], ...] = (
    (r"mamba_chunk_size", _cap(WINDOW)),
    # Numbers that only look like sizes.
    (
        r".*(kernel|window|patch|chunk|batch|pool|grid|stride|group|freq|step|roi|crop|tubelet|masked_unit)_sizes?",
        _keep,
    ),
    (r"(num_|audio_|input_)channels|in_chans|num_feature_levels|.*reduction.*|feature_size|pos_emb_.*", _keep),
    (r"type_vocab_sizes?|chunk_size_.*|.*_image_size|max_.*_size|.*_ratios?|.*_mult|.*scale.*|expand|channels", _keep),
    (r"image_size", _keep),  # Depends on the patch: see tiny_config.
    # Randomness that changes the shape of the work.
    (r".*(layerdrop|layer_drop|mask_time_prob|mask_feature_prob)", _set(0)),
    # Vocabularies and tables of positions.
    (
        r".*vocab_size(s|_per_layer_input)?|codebook_size|encoder_hash_byte_group_vocab|num_embeddings|number_output_channels",
        _cap(VOCABULARY),
    ),
    (r".*max_position_embeddings|.*max_pos_emb|n_positions|n_ctx|max_seq_len", _cap(POSITIONS)),
    (r"sliding_window(_size)?|attention_window|local_attention", _cap(WINDOW)),
    (r"num_queries|two_stage_num_proposals|num_query_tokens|num_detection_tokens|num_latents", _cap(8)),
    (r"num_denoising|max_source_positions|max_temporal_embeddings", _cap(32)),
    (r"base_channels", _set(32)),
    # Depth.
    (r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|num_mtp_layers", _cap(1)),
    (r".*(full_attention_interval|attn_layer_period|expert_layer_period|layer_interval)", _cap(2)),
    (r".*(attn_layer_offset|expert_layer_offset)", _cap(1)),
    (
        r"(.*_)?num_([a-z]+_)*layers|n_layers?|depths?|([a-z]+_)*layers|.*_depth|.*num_(hidden_)?blocks|blocks_per_stage",
        _cap(LAYERS),
    ),
    # Experts.
    (r"(moe_)?num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|zero_expert_num", _cap(EXPERTS)),
    (r"num_experts_per_tok|moe_topk|moe_k|.*experts_per_token|num_experts_per_token", _cap(2)),
    (r"n_group", _cap(2)),
    (r"topk_group", _cap(1)),
    # Widths.
    (r".*intermediate_size(_mlp)?|ffn_hidden_size", _matrix_width),
    (r"(.*_)?head_dim|head_size|.*d_head|dim_head|attention_head_size", _head),
    (
        r".*(_size|_size_global|_dims?|_dimension|_width|_channels|_rank|_units|_filters|_features|_planes|_embd)",
        _width,
    ),
    (
        r"d_[a-z]+|dim(_.*)?|dff|hidden_sizes|num_groups|upsample_groups|num_pos_feats|embed_dim_per_stage|backbone_channel_list|neck_hidden_sizes|n_inner|rotary_dim|embed_dims|mrope_section",
        _width,
    ),
)
_COMPILED = tuple((re.compile(pattern), rule) for pattern, rule in _RULES)


def rule_for(name: str) -> Rule:
    """The rule of the field `name`: to keep it, where nothing matches."""
    return next((rule for pattern, rule in _COMPILED if pattern.fullmatch(name)), _keep)


def is_width(name: str) -> bool:
    """Whether the field is divided like every width."""
    return rule_for(name) is _width


def apply(rule: Rule, value: Any, scale: int) -> Any:
    """`rule` on a number or on every number in nested lists; anything else stays."""
    if isinstance(value, list | tuple):
        return [apply(rule, item, scale) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return type(value)(rule(value, scale))
