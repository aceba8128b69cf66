"""KV-cache layout from a model's own config: bytes a token, bytes at full context, with the arithmetic.

One entry a layer, because real models mix: sliding windows, state-space layers, shared caches, their own head counts.
Whatever is found in the config under a name not handled here is left to `unknown`, which the report prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphmem.parameters.experts import text_config

_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSpeechSeq2Seq", "ForCausalLMWithValueHead")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
_HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")
_HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "n_embed")
_KV_HEAD_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_CONTEXT_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_target_positions", "max_sequence_length",
)  # fmt: skip

#: How configs name a layer's token mixer, and what each keeps.
_FULL = {"full_attention", "attention", "full", "global", "global_attention", "hybrid", "*"}
_SLIDING = {"sliding_attention", "sliding_window_attention", "local", "local_attention", "sliding"}
_CHUNKED = {"chunked_attention"}
_STATE = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "M", "kda", "ssm", "short_conv"}
_NOTHING = {"mlp", "moe", "-", "E"}

#: Alternation that released configs leave to the defaults of transformers' config classes: every n-th layer sees everything.
_DEFAULT_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "olmo3": 4, "cohere2": 4, "gpt_oss": 2}

#: Keys that change the cache in ways not worked out here; a config that has one gets no number rather than a wrong one.
_UNKNOWN_KEYS = ("compress_ratios",)


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """What one layer keeps for each token: ``elements``, for at most ``window`` tokens (None: for all of them)."""

    kind: str
    elements: int
    window: int | None
    arithmetic: str


@dataclass(frozen=True)
class CacheLayout:
    """The caches of a model, layer by layer."""

    layers: tuple[CacheLayer, ...]
    context: int | None
    #: Cross-attention keys and values: elements for each token of the encoder, over all layers.
    cross_elements: int = 0
    notes: tuple[str, ...] = ()

    def bytes_per_token(self, element_bytes: int = 2) -> int:
        """Bytes one more token adds while every window still grows."""
        return sum(layer.elements for layer in self.layers) * element_bytes

    def bytes_at(self, tokens: int, element_bytes: int = 2) -> int:
        """Bytes of one sequence of ``tokens`` tokens."""
        kept = (
            layer.elements * (tokens if layer.window is None else min(tokens, layer.window)) for layer in self.layers
        )
        return sum(kept) * element_bytes

    def explain(self, element_bytes: int = 2) -> str:
        """``32 layers × 2 (K, V) × 32 heads × 96 × 2 B``, one term for each kind of layer."""
        counts: dict[tuple[str, str, int | None], int] = {}
        for layer in self.layers:
            if layer.elements:
                key = (layer.kind, layer.arithmetic, layer.window)
                counts[key] = counts.get(key, 0) + 1
        terms = []
        for (kind, arithmetic, window), count in counts.items():
            kept = f", at most {window:,} tokens" if window is not None else ""
            terms.append(f"{count} {kind} layers × {arithmetic} × {element_bytes} B{kept}")
        return "; ".join(terms) if terms else "no layer keeps keys and values"


@dataclass(frozen=True)
class NoCache:
    """Why no layout can be given: the model keeps none, or the config does not say enough (then ``missing`` is True)."""

    reason: str
    missing: bool = False


class _NotWhole(Exception):
    """A size in the config that is no whole number above zero (three published configs carry Infinity)."""


def cache_layout(config: Mapping[str, Any]) -> CacheLayout | NoCache:
    """The cache layout that ``config`` (a config.json, or a GGUF header put in its terms) implies."""
    try:
        return _cache_layout(config)
    except _NotWhole as error:
        return NoCache(str(error), missing=True)


def _cache_layout(config: Mapping[str, Any]) -> CacheLayout | NoCache:
    text = text_config(config)
    if not text:
        return NoCache("no config beside the weights", missing=True)
    if config.get("_class_name"):
        return NoCache(f"{config['_class_name']} generates no tokens, so it keeps no cache")
    architectures = [str(name) for name in config.get("architectures") or text.get("architectures") or ()]
    generates = any(name.endswith(_GENERATIVE) for name in architectures) or config.get("is_encoder_decoder")
    if architectures and not generates and not any(key in text for key in _KV_HEAD_KEYS):
        return NoCache(f"{architectures[0]} generates no tokens, so it keeps no cache")
    if unknown := next((key for key in _UNKNOWN_KEYS if text.get(key)), None):
        return NoCache(f"the config's {unknown} changes the cache in a way graphmem does not know", missing=True)
    count = _whole(text, _LAYER_KEYS) if not text.get("num_decoder_layers") else _whole(text, ("num_decoder_layers",))
    if count is None:
        return NoCache("the config names no layer count", missing=True)
    notes: list[str] = []
    kinds = _layer_kinds(text, count, notes)
    if kinds is None:
        return NoCache(notes[-1], missing=True)
    heads = _Heads(text)
    layers: list[CacheLayer] = []
    for number, kind in enumerate(kinds):
        layer = _layer(kind, number, text, heads)
        if isinstance(layer, NoCache):
            return layer
        layers.append(layer)
    context = _whole(text, _CONTEXT_KEYS)
    _window_notes(layers, text, context, notes)
    layers = _without_shared([_unwindowed(layer, context) for layer in layers], text, notes)
    if text.get("index_head_dim"):
        notes.append(
            f"the sparse-attention indexer keeps {text['index_head_dim']} more values a token and layer, not counted here"
        )
    if crossing := sum(1 for layer in layers if layer.kind == "image cross-attention"):
        notes.append(f"{crossing} cross-attention layers keep keys and values of image tokens, not counted here")
    if states := sum(1 for layer in layers if layer.kind == "state"):
        notes.append(
            f"{states} state-space or linear-attention layers keep a state of fixed size for each sequence, not counted here"
        )
    cross = 0
    if config.get("is_encoder_decoder"):
        cross = sum(layer.elements for layer in layers)
        notes.append("cross-attention keeps as much again for every token of the encoder")
    return CacheLayout(tuple(layers), context, cross, tuple(notes))


def _whole(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first of ``keys`` that holds a size; null, false, 0 and lists (one entry a layer) count as absent."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if value and not isinstance(value, list | bool):
            raise _NotWhole(f"the config's {key} is {value}, not a whole number above zero")
    return None


class _Heads:
    """Key/value heads and their sizes, for the whole model or by layer."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        self._text = text
        attention = text.get("attn_config")
        nested = attention if isinstance(attention, Mapping) else {}
        self.heads = _whole(text, _HEAD_KEYS)
        hidden = _whole(text, _HIDDEN_KEYS)
        self._by_layer = next(
            (text[key] for key in ("num_key_value_heads", "num_kv_heads") if isinstance(text.get(key), list)), None
        )
        groups = text.get("multi_query_group_num") if text.get("multi_query_attention") else None
        one = text.get("multi_query") and not text.get("new_decoder_architecture")
        self._kv = (
            groups
            or _whole(text, ("num_key_value_heads", "num_kv_heads", "n_head_kv"))
            or nested.get("kv_n_heads")
            or (1 if one else self.heads)
        )
        if one and "num_key_value_heads" not in text:
            self._kv = 1
        self.size = _whole(text, ("head_dim", "attention_head_dim", "kv_channels", "d_kv"))
        if self.size is None and hidden and self.heads:
            self.size = hidden // self.heads
        if self.size and text.get("num_mem_blocks") and not text.get("attention_head_dim"):
            self.size *= 2  # Zamba's shared block attends over the hidden state and the embedding side by side
        self.value_size = _whole(text, ("v_head_dim",)) or self.size

    def of(self, number: int, sliding: bool) -> tuple[int, int, int] | None:
        """(KV heads, key size, value size) of a layer; None where the config does not say."""
        text = self._text
        kv, size, value_size = self._kv, self.size, self.value_size
        if self._by_layer is not None:
            kv = self._by_layer[number]
        if sliding:  # MiMo-V2-Flash: sliding layers have heads of their own
            kv = text.get("swa_num_key_value_heads") or kv
            size, value_size = text.get("swa_head_dim") or size, text.get("swa_v_head_dim") or value_size
        elif text.get("global_head_dim"):  # Gemma 4: full layers have larger heads, and may have fewer
            size = value_size = text["global_head_dim"]
            kv = text.get("num_global_key_value_heads") or kv
        if kv is None or size is None or value_size is None:
            return None
        return kv, size, value_size


def _layer_kinds(text: Mapping[str, Any], count: int, notes: list[str]) -> list[str] | None:
    """One word a layer, in the config's own vocabulary; None (and a note that says why) if it uses an unknown one."""
    kinds = _spelled_out(text, count) or _by_rule(text, count)
    known = _FULL | _SLIDING | _CHUNKED | _STATE | _NOTHING | {"image_cross_attention"}
    for kind in kinds:
        if kind not in known:
            notes.append(f"the config has layers of type {kind!r}, which graphmem does not know")
            return None
    if len(kinds) != count:
        notes.append(f"the config lists {len(kinds)} layer types for {count} layers")
        return None
    return kinds


def _spelled_out(text: Mapping[str, Any], count: int) -> list[str] | None:
    """Configs that list every layer."""
    for key in ("layer_types", "layers_block_type", "block_types"):
        value = text.get(key)
        if isinstance(value, list) and value:
            listed = [str(kind) for kind in value]
            return (listed * count)[:count] if key == "block_types" else listed
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):  # Nemotron-H: M mamba, * attention, - MLP, E experts
        return list(pattern)
    kinds = text.get("attn_type_list")
    if isinstance(kinds, list):  # MiniMax: 1 is softmax attention, 0 lightning attention
        return ["full_attention" if kind else "linear_attention" for kind in kinds]
    for key in (
        "full_attn_idxs",
        "attn_layer_indices",
    ):  # LFM2, Bamba: the attention layers; the others convolve or recur
        if isinstance(text.get(key), list):
            return ["full_attention" if number in text[key] else "conv" for number in range(count)]
    linear = text.get("linear_attn_config")
    if isinstance(linear, Mapping) and isinstance(linear.get("full_attn_layers"), list):  # Kimi Linear, counted from 1
        return ["full_attention" if number + 1 in linear["full_attn_layers"] else "kda" for number in range(count)]
    crossing = text.get("cross_attention_layers")
    if isinstance(crossing, list):  # Mllama
        return ["image_cross_attention" if number in crossing else "full_attention" for number in range(count)]
    hybrid = text.get("hybrid_layer_pattern")
    if isinstance(hybrid, list):  # MiMo-V2-Flash: 1 is sliding
        return ["sliding_attention" if kind else "full_attention" for kind in hybrid]
    blocks = text.get("block_configs")
    if isinstance(blocks, list):  # Nemotron-NAS: some layers have no attention at all
        return ["mlp" if (block.get("attention") or {}).get("no_op") else "full_attention" for block in blocks]
    return None


def _by_rule(text: Mapping[str, Any], count: int) -> list[str]:
    """Configs that give a period, or nothing because their code alternates."""
    if interval := text.get("full_attention_interval"):  # Qwen3-Next
        return ["full_attention" if (n + 1) % interval == 0 else "linear_attention" for n in range(count)]
    if period := text.get("attn_layer_period"):  # Jamba
        offset = text.get("attn_layer_offset", 0)
        return ["attention" if n % period == offset else "mamba" for n in range(count)]
    if "state_size" in text and not _whole(text, _HEAD_KEYS):  # Mamba
        return ["mamba"] * count
    if (
        text.get("attention_chunk_size") and isinstance(text.get("no_rope_layers"), list) and text["no_rope_layers"]
    ):  # Llama 4
        return ["chunked_attention" if rope else "full_attention" for rope in text["no_rope_layers"]]
    if text.get("attention_chunk_size"):  # Llama 4, where every fourth layer sees everything by default
        return ["full_attention" if (n + 1) % 4 == 0 else "chunked_attention" for n in range(count)]
    window = text.get("sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return ["full_attention"] * count
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
    if pattern is None:
        pattern = _DEFAULT_PERIODS.get(str(text.get("model_type", "")))
    if isinstance(pattern, int) and pattern > 1:
        return ["full_attention" if (n + 1) % pattern == 0 else "sliding_attention" for n in range(count)]
    if text.get("use_sliding_window"):  # Qwen 2: only the layers from max_window_layers on
        first = text.get("max_window_layers", 0)
        return ["sliding_attention" if n >= first else "full_attention" for n in range(count)]
    return ["sliding_attention"] * count


def _layer(kind: str, number: int, text: Mapping[str, Any], heads: _Heads) -> CacheLayer | NoCache:
    if kind in _STATE:
        return CacheLayer("state", 0, None, "")
    if kind == "image_cross_attention":
        return CacheLayer("image cross-attention", 0, None, "")
    if kind in _NOTHING:
        return CacheLayer("no-cache", 0, None, "")
    window = None
    if kind in _SLIDING:
        window = _whole(text, ("sliding_window", "sliding_window_size", "window_size"))
    elif kind in _CHUNKED:
        window = _whole(text, ("attention_chunk_size",))
    name = "sliding" if kind in _SLIDING else "chunked" if kind in _CHUNKED else "full"
    latent, rope = text.get("kv_lora_rank"), text.get("qk_rope_head_dim")
    if isinstance(latent, int) and isinstance(rope, int) and latent > 0:
        return CacheLayer("latent (MLA)", latent + rope, window, f"({latent} latent + {rope} RoPE)")
    found = heads.of(number, kind in _SLIDING)
    if found is None:
        return NoCache("the config names no attention heads or head size", missing=True)
    kv, size, value_size = found
    if size == value_size:
        return CacheLayer(name, 2 * kv * size, window, f"2 (K and V) × {kv} KV heads × {size}")
    return CacheLayer(name, kv * (size + value_size), window, f"{kv} KV heads × ({size} K + {value_size} V)")


def _unwindowed(layer: CacheLayer, context: int | None) -> CacheLayer:
    """A window no smaller than the context never drops a token: full attention."""
    if layer.window is None or context is None or layer.window < context:
        return layer
    return CacheLayer("full", layer.elements, None, layer.arithmetic)


def _without_shared(layers: list[CacheLayer], text: Mapping[str, Any], notes: list[str]) -> list[CacheLayer]:
    shared = text.get("num_kv_shared_layers")
    if not isinstance(shared, int) or not 0 < shared < len(layers):
        return layers
    notes.append(f"the last {shared} layers share the cache of earlier ones and keep none of their own")
    return [*layers[:-shared], *(CacheLayer("shared", 0, None, "") for _ in range(shared))]


def _window_notes(layers: list[CacheLayer], text: Mapping[str, Any], context: int | None, notes: list[str]) -> None:
    if unplaced := text.get("unplaced_sliding_window"):
        notes.append(
            f"the file names a sliding window of {unplaced:,} but not which layers use it: counted as full attention"
        )
    window = text.get("sliding_window")
    if not window:
        return
    if all(layer.window is None for layer in layers):
        notes.append(f"sliding_window {window:,} has no effect: the config switches it off")
    elif context and all(layer.window is None or layer.window >= context for layer in layers):
        notes.append(f"sliding_window {window:,} has no effect: it is not smaller than the context of {context:,}")
