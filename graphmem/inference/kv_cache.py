"""The cache a model keeps, read from its own config: layer by layer, because real models mix kinds.

Keys that are known to change the cache in ways not worked out here give a reason instead of a number; keys that look as if they might are named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from graphmem.config import architectures, text_config, writes_tokens
from graphmem.inference.kv_dtypes import BFLOAT16, KVDType
from graphmem.inference.layer_kinds import (
    BOTH,
    CHUNKED,
    COMPRESSED,
    HEAD_KEYS,
    NOTHING,
    SLIDING,
    STATE,
    NotWhole,
    layer_kinds,
    whole,
)
from graphmem.inference.layouts import (
    Attention,
    ChunkedAttention,
    CompressedAttention,
    CrossAttention,
    Growing,
    IndexedAttention,
    LatentAttention,
    LayerCache,
    Nothing,
    SlidingAttention,
    State,
)
from graphmem.inference.states import state_of

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "n_embed")
#: Keys that change the cache in ways not worked out here; a config that has one gets no number rather than a wrong one.
_UNKNOWN_KEYS = ("mamba_step", "use_cla")
#: No model comes near this; a config that says more is wrong.
_MOST_LAYERS = 100_000
_KV_HEAD_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "n_ctx",
    "max_target_positions",
    "max_sequence_length",
)


@dataclass(frozen=True)
class CacheLayout:
    """What each decoder layer keeps; a layer may keep several things (its own keys and those of an encoder)."""

    layers: tuple[tuple[LayerCache, ...], ...]
    context: int | None
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerCache]:
        return (cache for layer in self.layers for cache in layer)

    @property
    def attention(self) -> list[Growing]:
        """Everything that grows with the sequence."""
        return [c for c in self if isinstance(c, Growing) and not isinstance(c, CrossAttention)]

    @property
    def cross(self) -> list[CrossAttention]:
        return [c for c in self if isinstance(c, CrossAttention)]

    @property
    def states(self) -> list[State]:
        return [c for c in self if isinstance(c, State)]

    @property
    def is_partial(self) -> bool:
        """Whether something kept is not counted: an encoder whose length only the run decides."""
        return any(cross.tokens is None for cross in self.cross)

    def bytes_per_token(self, kv: KVDType = BFLOAT16, once_full: bool = False) -> int:
        """Bytes one more token adds while every window still grows, or once every window is full."""
        return sum(c.per_token(kv) for c in self.attention if not (once_full and c.window is not None))

    def state_bytes(self, model_bytes: int = 2) -> int:
        """Bytes of states a sequence, however long it is. ``model_bytes``: of the model's dtype."""
        return sum(state.nbytes(model_bytes) for state in self.states)

    def cross_bytes(self, kv: KVDType = BFLOAT16) -> int:
        """Bytes of the encoder's or the image's keys and values, at the length the config gives."""
        return sum(cross.bytes_at(0, kv) for cross in self.cross)

    def bytes_at(self, tokens: int, kv: KVDType = BFLOAT16, model_bytes: int = 2) -> int:
        """Bytes of one sequence of ``tokens`` tokens: keys and values, states, and the encoder's at its full length."""
        return (
            sum(c.bytes_at(tokens, kv) for c in self.attention) + self.cross_bytes(kv) + self.state_bytes(model_bytes)
        )

    def with_draft_layers(self, count: int) -> CacheLayout:
        """With the layers of a draft model of the same heads (EAGLE, MTP): each keeps what the last attention layer keeps."""
        last = next((c for c in reversed(self.attention)), None)
        return self if last is None else replace(self, layers=(*self.layers, *[(last,)] * count))

    def explain(self, kv: KVDType = BFLOAT16, tokens: int | None = None) -> str:
        """``32 full layers × 2 (K and V) × 32 KV heads × 96 × 2 B``, one term for each kind of layer; times the tokens kept."""
        terms = []
        for cache, count in self.kinds().items():
            if isinstance(cache, Nothing):
                continue
            each = f"({cache.arithmetic})" if isinstance(cache, State) else cache.arithmetic
            term = f"{count} {cache.kind} layers × {each}"
            if not isinstance(cache, State):
                term += f" × {kv.words}"
                if isinstance(cache, CrossAttention):
                    known = f"{cache.tokens:,}" if cache.tokens else "the"
                    term += f" × {known} tokens of the {cache.of}"
                elif tokens is not None:
                    term += f" × {cache.kept(tokens):,} tokens"
                elif cache.window is not None:
                    term += f", at most {cache.window:,} tokens"
            elif tokens is None:
                term += ", whatever the length"
            terms.append(term)
        return (" + " if tokens is not None else "; ").join(terms) or "no layer keeps keys and values"

    def kinds(self) -> dict[LayerCache, int]:
        """Each different thing kept and how many layers keep it, in order of first appearance."""
        return Counter(self)


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
    text = decoder_config(config)
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
    count = _layers(text)
    if count is None:
        return NoCache("the config names no layer count", missing=True)
    if count > _MOST_LAYERS:
        return NoCache(f"the config names {count:,} layers", missing=True)
    notes: list[str] = []
    kinds = layer_kinds(text, count, notes)
    if kinds is None:
        return NoCache(notes[-1], missing=True)
    context = whole(text, _CONTEXT_KEYS)
    reader = _Reader(config, text, context)
    layers: list[tuple[LayerCache, ...]] = []
    for number, kind in enumerate(kinds):
        layer = reader.layer(number, kind)
        if isinstance(layer, NoCache):
            return layer
        layers.append(layer)
    _window_notes(layers, text, context, notes)
    layers = _without_shared([tuple(_unwindowed(c, context) for c in layer) for layer in layers], text, notes)
    notes += _unknown_keys(text)
    return CacheLayout(tuple(layers), context, tuple(notes))


def decoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the layers which write tokens: its language model, or its decoder."""
    text = text_config(config)
    decoder = config.get("decoder")
    if text is config and isinstance(decoder, Mapping) and whole(decoder, _LAYER_KEYS):
        return decoder
    if whole(text, _LAYER_KEYS) is None and whole(config, _LAYER_KEYS):
        return {**config, **text}  # Fuyu: the nested part only names its type
    return text


def _layers(text: Mapping[str, Any]) -> int | None:
    """Decoder layers with a cache of their own."""
    if text.get("num_decoder_layers"):
        return whole(text, ("num_decoder_layers",))
    count = whole(text, _LAYER_KEYS)
    if count is not None and "zero_expert_num" in text and "num_hidden_layers" not in text:
        return 2 * count  # LongCat-Flash attends twice in what it calls a layer
    listed = text.get("layers_block_type") or text.get("layer_types")
    return len(listed) if count is None and isinstance(listed, list) and listed else count


class _Reader:
    """Sizes of a config, for the whole model or by layer."""

    def __init__(self, config: Mapping[str, Any], text: Mapping[str, Any], context: int | None) -> None:
        self._config, self._text, self._context = config, text, context
        attention = text.get("attn_config")
        nested = attention if isinstance(attention, Mapping) else {}
        self.heads = whole(text, HEAD_KEYS)
        hidden = whole(text, HIDDEN_KEYS)
        self._by_layer = next(
            (text[key] for key in ("num_key_value_heads", "num_kv_heads") if isinstance(text.get(key), list)), None
        )
        groups = text.get("multi_query_group_num") if text.get("multi_query_attention") else None
        grouped = ("num_query_groups",) if text.get("group_query_attention") else ()
        given = (
            groups
            or whole(text, ("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_attention_groups", *grouped))
            or nested.get("kv_n_heads")
        )
        if nested.get("attn_type") == "multiquery_attention":
            given = 1
        one = text.get("multi_query") and not text.get("new_decoder_architecture")
        # Falcon 7B's config says multi_query and 71 num_kv_heads; only num_key_value_heads speaks against the former.
        self._kv = 1 if one and not text.get("num_key_value_heads") else given or self.heads
        self.size = whole(text, ("head_dim", "attention_head_dim", "kv_channels", "d_kv"))
        if self.size is None and hidden and self.heads:
            self.size = hidden // self.heads
        narrow = self.size and hidden and self.heads and self.size <= hidden // self.heads
        if self.size and narrow and text.get("num_mem_blocks") and not text.get("attention_head_dim"):
            self.size *= 2  # Zamba's shared block attends over the hidden state and the embedding side by side
        self.value_size = whole(text, ("v_head_dim",)) or self.size
        self.state = state_of(text)

    def layer(self, number: int, kind: str) -> tuple[LayerCache, ...] | NoCache:
        """What a layer of this kind keeps."""
        if kind in NOTHING:
            return (Nothing(),)
        if kind in STATE or kind in BOTH:
            if self.state is None:
                return NoCache(
                    f"the config names no sizes of the state that layers of type {kind!r} keep", missing=True
                )
            if kind in STATE:
                return (self.state,)
        found = self._attention(number, kind)
        if found is None:
            return NoCache("the config names no attention heads or head size", missing=True)
        if kind in BOTH:
            return (found, self.state) if self.state is not None else (found,)
        if self._config.get("is_encoder_decoder") and isinstance(found, Attention):
            tokens = _encoder_tokens(self._config, self._text, self._context)
            return found, CrossAttention(found.kv_heads, found.key_size, found.value_size, tokens)
        return (found,)

    def _attention(self, number: int, kind: str) -> LayerCache | None:
        text = self._text
        latent, rope = text.get("kv_lora_rank"), text.get("qk_rope_head_dim")
        if isinstance(latent, int) and isinstance(rope, int) and latent > 0:
            return LatentAttention(latent, rope, self._indexer(number))
        found = self._heads(number, kind in SLIDING)
        if found is None:
            return None
        if kind in COMPRESSED:
            window, overlaps = whole(text, ("sliding_window",)), kind == "compressed_sparse_attention"
            ratio = 4 if overlaps else 128
            return CompressedAttention(window or 0, found[1], ratio, self._indexer(number) if overlaps else 0)
        if kind == "image_cross_attention":
            return CrossAttention(*found, tokens=_image_tokens(self._config), of="image")
        if kind in SLIDING:
            window = whole(text, ("sliding_window", "sliding_window_size", "window_size", "attention_window_size"))
            return SlidingAttention(*found, window) if window else Attention(*found)
        if kind in CHUNKED:
            chunk = whole(text, ("attention_chunk_size",))
            return ChunkedAttention(*found, chunk) if chunk else Attention(*found)
        if indexer := self._sparse_indexer(number):
            return IndexedAttention(*found, indexer)
        return Attention(*found)

    def _indexer(self, number: int) -> int:
        """Elements of the indexer's key of this layer; layers that share another's choice keep none (GLM-5.2)."""
        types = self._text.get("indexer_types")
        if isinstance(types, list) and number < len(types) and types[number] != "full":
            return 0
        return whole(self._text, ("index_head_dim",)) or 0

    def _sparse_indexer(self, number: int) -> int:
        sparse = self._text.get("sparse_attention_config")
        if not isinstance(sparse, Mapping):
            return 0
        used = sparse.get("sparse_attention_freq")
        if isinstance(used, list) and number < len(used) and not used[number]:
            return 0
        return whole(sparse, ("sparse_index_dim",)) or 0

    def _heads(self, number: int, sliding: bool) -> tuple[int, int, int] | None:
        """(KV heads, key size, value size) of a layer; None where the config does not say."""
        text = self._text
        kv, size, value_size = self._kv, self.size, self.value_size
        if self._by_layer is not None:
            kv = self._by_layer[number]
        if isinstance(blocks := text.get("block_configs"), list):  # Nemotron-NAS: how many query heads share a KV head
            shared = (blocks[number].get("attention") or {}).get("n_heads_in_group")
            kv = self.heads // shared if self.heads and isinstance(shared, int) and shared > 0 else kv
        if sliding:  # MiMo-V2-Flash: sliding layers have heads of their own
            kv = whole(text, ("swa_num_key_value_heads",)) or kv
            size, value_size = whole(text, ("swa_head_dim",)) or size, whole(text, ("swa_v_head_dim",)) or value_size
        elif wide := whole(text, ("global_head_dim",)):  # Gemma 4: full layers have larger heads, and may have fewer
            size = value_size = wide
            kv = whole(text, ("num_global_key_value_heads",)) or kv
        if not (isinstance(kv, int) and isinstance(size, int) and isinstance(value_size, int)):
            return None
        return kv, size, value_size


def _encoder_tokens(config: Mapping[str, Any], text: Mapping[str, Any], context: int | None) -> int | None:
    """The most tokens an encoder hands over: audio frames after its convolutions, patches of an image, or as many as the decoder takes."""
    encoder = config.get("encoder")
    if isinstance(encoder, Mapping):
        image, patch = whole(encoder, ("image_size",)), whole(encoder, ("patch_size",))
        if image and patch:
            return (image // patch) ** 2 + 1
        return whole(encoder, ("n_positions", "max_position_embeddings"))
    if frames := whole(text, ("max_source_positions",)):
        halvings = whole(text, ("num_conv_layers",)) or 0  # speech_to_text; Whisper counts what its convolutions leave
        return frames >> halvings
    return context


def _image_tokens(config: Mapping[str, Any]) -> int | None:
    """Mllama: patches and a class token of every tile an image may have."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return None
    image, patch, tiles = (whole(vision, (key,)) for key in ("image_size", "patch_size", "max_num_tiles"))
    return tiles * ((image // patch) ** 2 + 1) if image and patch and tiles else None


def _unwindowed(cache: LayerCache, context: int | None) -> LayerCache:
    """A window no smaller than the context never drops a token: full attention."""
    if isinstance(cache, SlidingAttention) and context is not None and cache.size >= context:
        return Attention(cache.kv_heads, cache.key_size, cache.value_size)
    return cache


def _without_shared(
    layers: list[tuple[LayerCache, ...]], text: Mapping[str, Any], notes: list[str]
) -> list[tuple[LayerCache, ...]]:
    shared = text.get("num_kv_shared_layers")
    if not isinstance(shared, int) or not 0 < shared < len(layers):
        return layers
    notes.append(f"the last {shared} layers share the cache of earlier ones and keep none of their own")
    return [*layers[:-shared], *[(Nothing("shared"),)] * shared]


def _window_notes(
    layers: list[tuple[LayerCache, ...]], text: Mapping[str, Any], context: int | None, notes: list[str]
) -> None:
    if unplaced := text.get("unplaced_sliding_window"):
        notes.append(
            f"the file names a sliding window of {unplaced:,} but not which layers use it: counted as full attention"
        )
    window = text.get("sliding_window")
    if not window:
        return
    windows = [cache.window for layer in layers for cache in layer if isinstance(cache, Growing)]
    if all(size is None for size in windows):
        notes.append(f"sliding_window {window:,} has no effect: the config switches it off")
    elif context and all(size is None or size >= context for size in windows):
        notes.append(f"sliding_window {window:,} has no effect: it is not smaller than the context of {context:,}")


#: Words in the names of keys that size caches, and the keys known here: read above, or known to change nothing that is kept.
_CACHE_WORDS = re.compile(
    r"(^|_)(kv|swa|window|sliding|compress\w*|cache|ssm|mamba|recurrent|latent|indexer?|sparse)(_|$)"
)
_KNOWN_KEYS = {
    "num_kv_heads", "n_head_kv", "kv_channels", "kv_lora_rank", "d_kv", "num_kv_shared_layers", "kv_n_heads", "attention_k_eq_v",
    "swa_num_key_value_heads", "swa_head_dim", "swa_v_head_dim", "swa_num_attention_heads", "swa_rope_theta", "add_swa_attention_sink_bias",
    "sliding_window", "sliding_window_size", "sliding_window_pattern", "_sliding_window_pattern", "use_sliding_window", "max_window_layers",
    "window_size", "attention_window_size", "unplaced_sliding_window", "layer_uses_sliding_window",
    "compress_ratios", "compress_rates", "compress_rope_theta", "use_cache", "cache_implementation", "mamba_ssm_cache_dtype",
    "ssm_state_size", "mamba_ssm_dtype", "sparse_attention_config", "latent_moe_use_norm", "moe_latent_size", "decoder_sparse_step",
    "num_sparse_encoder_layers", "num_sparse_decoder_layers", "encoder_sparse_step",
    "index_head_dim", "index_n_heads", "index_topk", "index_topk_freq", "index_topk_pattern", "index_skip_topk_offset",
    "index_share_for_mtp_iteration", "indexer_types", "indexer_rope_interleave", "image_token_index", "video_token_index", "audio_token_index",
    "recurrent_block_type", "use_mamba_kernels", "conv_L_cache",
}  # fmt: skip
_SIZES_A_MAMBA = re.compile(r"(^|_)mamba(_|$)")


def _unknown_keys(text: Mapping[str, Any]) -> list[str]:
    """A key that by its name may size the cache, and that nothing here reads."""
    unknown = [
        key
        for key, value in text.items()
        if isinstance(key, str)
        and _CACHE_WORDS.search(key)
        and key not in _KNOWN_KEYS
        and not _SIZES_A_MAMBA.search(key)
        and value not in (None, False, 0, "")
    ]
    return [f"the config's {key} is not known to graphmem; by its name it may change the cache" for key in unknown]
