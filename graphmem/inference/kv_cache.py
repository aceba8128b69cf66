"""KV-cache layout from a model's own config: bytes a token, bytes at full context, with the arithmetic.

One entry a layer, because real models mix: sliding windows, state-space layers, shared caches, their own head counts.
Keys that are known to change the cache in ways not worked out here give a reason instead of a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphmem.config import architectures, text_config, writes_tokens
from graphmem.inference.layer_kinds import CHUNKED, HEAD_KEYS, NOTHING, SLIDING, STATE, NotWhole, layer_kinds, whole

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
_HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "n_embed")
#: No model comes near this; a config that says more is wrong.
_MOST_LAYERS = 100_000
_KV_HEAD_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_CONTEXT_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_target_positions", "max_sequence_length",
)  # fmt: skip

#: Keys that change the cache in ways not worked out here; a config that has one gets no number rather than a wrong one.
_UNKNOWN_KEYS = ("compress_ratios",)

#: Kinds of layers that keep something this page of arithmetic does not count.
_UNCOUNTED = ("state", "image cross-attention")


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
    #: Cross-attention keys and values: elements for each token of the encoder, over all layers; and how many tokens it may have.
    cross_elements: int = 0
    encoder_context: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_partial(self) -> bool:
        """Whether layers keep something that is not counted here: states, image tokens, an encoder of unknown length."""
        uncounted = any(layer.kind in _UNCOUNTED for layer in self.layers)
        return uncounted or (self.cross_elements > 0 and self.encoder_context is None)

    def bytes_per_token(self, element_bytes: int = 2, once_full: bool = False) -> int:
        """Bytes one more token adds while every window still grows, or once every window is full."""
        return (
            sum(layer.elements for layer in self.layers if not (once_full and layer.window is not None)) * element_bytes
        )

    def bytes_at(self, tokens: int, element_bytes: int = 2) -> int:
        """Bytes of one sequence of ``tokens`` tokens, with the encoder's at its full length where there is one."""
        kept = (
            layer.elements * (tokens if layer.window is None else min(tokens, layer.window)) for layer in self.layers
        )
        return (sum(kept) + self.cross_elements * (self.encoder_context or 0)) * element_bytes

    def explain(self, element_bytes: int = 2, tokens: int | None = None) -> str:
        """``32 full layers × 2 (K and V) × 32 KV heads × 96 × 2 B``, one term for each kind of layer; times the tokens kept."""
        counts: dict[tuple[str, str, int | None], int] = {}
        for layer in self.layers:
            if layer.elements:
                key = (layer.kind, layer.arithmetic, layer.window)
                counts[key] = counts.get(key, 0) + 1
        terms = []
        for (kind, arithmetic, window), count in counts.items():
            term = f"{count} {kind} layers × {arithmetic} × {element_bytes} B"
            if tokens is not None:
                term += f" × {min(tokens, window or tokens):,} tokens"
            elif window is not None:
                term += f", at most {window:,} tokens"
            terms.append(term)
        if tokens is not None and self.cross_elements and self.encoder_context:
            terms.append(
                f"{self.cross_elements:,} × {element_bytes} B × {self.encoder_context:,} tokens of the encoder"
            )
        joint = " + " if tokens is not None else "; "
        return joint.join(terms) if terms else "no layer keeps keys and values"


@dataclass(frozen=True)
class NoCache:
    """Why no layout can be given: the model keeps none, or the config does not say enough (then ``missing`` is True)."""

    reason: str
    missing: bool = False


def cache_layout(config: Mapping[str, Any]) -> CacheLayout | NoCache:
    """The cache layout that ``config`` (a config.json, or a GGUF header put in its terms) implies."""
    try:
        return _cache_layout(config)
    except NotWhole as error:
        return NoCache(str(error), missing=True)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        # Every key of a config can hold anything; the arithmetic above trusts kinds it has not checked one by one.
        return NoCache(
            f"a key of the config holds a value of the wrong kind ({type(error).__name__}: {error})", missing=True
        )


def _cache_layout(config: Mapping[str, Any]) -> CacheLayout | NoCache:
    text = text_config(config)
    if not text:
        return NoCache("no config beside the weights", missing=True)
    if config.get("_class_name"):
        return NoCache(f"{config['_class_name']} generates no tokens, so it keeps no cache")
    names = architectures(config)
    generates = writes_tokens(config) or config.get("is_encoder_decoder")
    if names and not generates and not any(key in text for key in _KV_HEAD_KEYS):
        return NoCache(f"{names[0]} generates no tokens, so it keeps no cache")
    if unknown := next((key for key in _UNKNOWN_KEYS if text.get(key)), None):
        return NoCache(f"the config's {unknown} changes the cache in a way graphmem does not know", missing=True)
    count = whole(text, _LAYER_KEYS) if not text.get("num_decoder_layers") else whole(text, ("num_decoder_layers",))
    if count is None:
        return NoCache("the config names no layer count", missing=True)
    if count > _MOST_LAYERS:
        return NoCache(f"the config names {count:,} layers", missing=True)
    notes: list[str] = []
    kinds = layer_kinds(text, count, notes)
    if kinds is None:
        return NoCache(notes[-1], missing=True)
    heads = _Heads(text)
    layers: list[CacheLayer] = []
    for number, kind in enumerate(kinds):
        layer = _layer(kind, number, text, heads)
        if isinstance(layer, NoCache):
            return layer
        layers.append(layer)
    context = whole(text, _CONTEXT_KEYS)
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
    cross, encoder = 0, None
    if config.get("is_encoder_decoder"):
        cross = sum(layer.elements for layer in layers)
        encoder = whole(text, ("max_source_positions",)) or context
    return CacheLayout(tuple(layers), context, cross, encoder, tuple(notes))


class _Heads:
    """Key/value heads and their sizes, for the whole model or by layer."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        self._text = text
        attention = text.get("attn_config")
        nested = attention if isinstance(attention, Mapping) else {}
        self.heads = whole(text, HEAD_KEYS)
        hidden = whole(text, _HIDDEN_KEYS)
        self._by_layer = next(
            (text[key] for key in ("num_key_value_heads", "num_kv_heads") if isinstance(text.get(key), list)), None
        )
        groups = text.get("multi_query_group_num") if text.get("multi_query_attention") else None
        given = groups or whole(text, ("num_key_value_heads", "num_kv_heads", "n_head_kv")) or nested.get("kv_n_heads")
        one = text.get("multi_query") and not text.get("new_decoder_architecture")
        # Falcon 7B's config says multi_query and 71 num_kv_heads; only num_key_value_heads speaks against the former.
        self._kv = 1 if one and not text.get("num_key_value_heads") else given or self.heads
        self.size = whole(text, ("head_dim", "attention_head_dim", "kv_channels", "d_kv"))
        if self.size is None and hidden and self.heads:
            self.size = hidden // self.heads
        if self.size and text.get("num_mem_blocks") and not text.get("attention_head_dim"):
            self.size *= 2  # Zamba's shared block attends over the hidden state and the embedding side by side
        self.value_size = whole(text, ("v_head_dim",)) or self.size

    def of(self, number: int, sliding: bool) -> tuple[int, int, int] | None:
        """(KV heads, key size, value size) of a layer; None where the config does not say."""
        text = self._text
        kv, size, value_size = self._kv, self.size, self.value_size
        if self._by_layer is not None:
            kv = self._by_layer[number]
        if sliding:  # MiMo-V2-Flash: sliding layers have heads of their own
            kv = whole(text, ("swa_num_key_value_heads",)) or kv
            size, value_size = whole(text, ("swa_head_dim",)) or size, whole(text, ("swa_v_head_dim",)) or value_size
        elif wide := whole(text, ("global_head_dim",)):  # Gemma 4: full layers have larger heads, and may have fewer
            size = value_size = wide
            kv = whole(text, ("num_global_key_value_heads",)) or kv
        if not (isinstance(kv, int) and isinstance(size, int) and isinstance(value_size, int)):
            return None
        return kv, size, value_size


def _layer(kind: str, number: int, text: Mapping[str, Any], heads: _Heads) -> CacheLayer | NoCache:
    if kind in STATE:
        return CacheLayer("state", 0, None, "")
    if kind == "image_cross_attention":
        return CacheLayer("image cross-attention", 0, None, "")
    if kind in NOTHING:
        return CacheLayer("no-cache", 0, None, "")
    window = None
    if kind in SLIDING:
        window = whole(text, ("sliding_window", "sliding_window_size", "window_size"))
    elif kind in CHUNKED:
        window = whole(text, ("attention_chunk_size",))
    name = "sliding" if kind in SLIDING else "chunked" if kind in CHUNKED else "full"
    latent, rope = text.get("kv_lora_rank"), text.get("qk_rope_head_dim")
    if isinstance(latent, int) and isinstance(rope, int) and latent > 0:
        return CacheLayer("latent (MLA)", latent + rope, window, f"({latent} latent + {rope} RoPE)")
    found = heads.of(number, kind in SLIDING)
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
