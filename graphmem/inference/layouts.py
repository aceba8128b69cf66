"""What one layer keeps between tokens: one small class a kind, each with its own arithmetic.

Attention kinds grow with the tokens; states do not. Sizes are numbers of elements; `KVDType` and the model's dtype make bytes of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from graphmem.inference.kv_dtypes import KVDType


@dataclass(frozen=True, slots=True)
class Attention:
    """Keys and values of every token (MHA, GQA, MQA)."""

    kv_heads: int
    key_size: int
    value_size: int

    kind: ClassVar[str] = "full"

    def per_token(self, kv: KVDType) -> int:
        """Bytes of one token's keys and values."""
        return self.kv_heads * (kv.row(self.key_size) + kv.row(self.value_size))

    def kept(self, tokens: int) -> int:
        """How many of a sequence's ``tokens`` stay."""
        return tokens

    def bytes_at(self, tokens: int, kv: KVDType) -> int:
        return self.per_token(kv) * self.kept(tokens)

    @property
    def window(self) -> int | None:
        """The most tokens it keeps; None: all of them."""
        return None

    @property
    def arithmetic(self) -> str:
        if self.key_size == self.value_size:
            return f"2 (K and V) × {self.kv_heads} KV heads × {self.key_size}"
        return f"{self.kv_heads} KV heads × ({self.key_size} K + {self.value_size} V)"


@dataclass(frozen=True, slots=True)
class SlidingAttention(Attention):
    """Keys and values of the last ``size`` tokens."""

    size: int = 0

    kind: ClassVar[str] = "sliding"

    def kept(self, tokens: int) -> int:
        return min(tokens, self.size)

    @property
    def window(self) -> int | None:
        return self.size


@dataclass(frozen=True, slots=True)
class ChunkedAttention(SlidingAttention):
    """Keys and values of the current chunk of ``size`` tokens (Llama 4)."""

    kind: ClassVar[str] = "chunked"


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """One compressed vector and one rotary key for all heads (MLA, DeepSeek-V2 §2.1), and a sparse-attention indexer's key if there is one."""

    latent: int
    rope: int
    indexer: int = 0

    kind: ClassVar[str] = "latent (MLA)"
    window: ClassVar[int | None] = None

    def per_token(self, kv: KVDType) -> int:
        return kv.row(self.latent + self.rope) + (kv.row(self.indexer) if self.indexer else 0)

    def kept(self, tokens: int) -> int:
        return tokens

    def bytes_at(self, tokens: int, kv: KVDType) -> int:
        return self.per_token(kv) * tokens

    @property
    def arithmetic(self) -> str:
        return f"({self.latent} latent + {self.rope} RoPE" + (f" + {self.indexer} indexer)" if self.indexer else ")")


@dataclass(frozen=True, slots=True)
class IndexedAttention(Attention):
    """Full attention whose sparse indexer keeps a key of its own for each token (MiniMax-M3)."""

    indexer: int = 0

    kind: ClassVar[str] = "full, indexed"

    def per_token(self, kv: KVDType) -> int:
        return self.kv_heads * (kv.row(self.key_size) + kv.row(self.value_size)) + kv.row(self.indexer)

    @property
    def arithmetic(self) -> str:
        return f"(2 (K and V) × {self.kv_heads} KV heads × {self.key_size} + {self.indexer} indexer)"


@dataclass(frozen=True, slots=True)
class CompressedAttention:
    """A window of shared K=V vectors, and one compressed vector for every ``ratio`` tokens (DeepSeek-V4).

    Tokens that do not fill a group yet wait with their gates. Groups that overlap (the small ratio) have vectors of twice the width, keep the last
    group, and have an indexer that compresses likewise.
    """

    size: int
    width: int
    ratio: int
    indexer: int = 0

    kind: ClassVar[str] = "compressed"

    @property
    def window(self) -> int | None:
        return self.size

    def per_token(self, kv: KVDType) -> int:
        """While the window grows; `ratio` tokens add one compressed vector, so this is rounded down."""
        return kv.row(self.width) + (kv.row(self.width) + kv.row(self.indexer)) // self.ratio

    def kept(self, tokens: int) -> int:
        return min(tokens, self.size)

    def bytes_at(self, tokens: int, kv: KVDType) -> int:
        widths = [width for width in (self.width, self.indexer) if width]
        groups, waiting = divmod(tokens, self.ratio)
        overlaps = 2 if self.indexer else 1
        entries = groups * sum(kv.row(width) for width in widths)
        buffers = 2 * waiting * overlaps * sum(kv.row(width) for width in widths)
        last = 2 * self.ratio * sum(kv.row(width) for width in widths) if self.indexer and groups else 0
        return self.kept(tokens) * kv.row(self.width) + entries + buffers + last

    @property
    def arithmetic(self) -> str:
        compressed = f"({self.width} + {self.indexer} indexer)" if self.indexer else f"{self.width}"
        return f"(1 (K is V) × {self.width} + {compressed} / {self.ratio})"


@dataclass(frozen=True, slots=True)
class CrossAttention(Attention):
    """Keys and values of another sequence: the encoder's tokens, or an image's. ``tokens``: how many, None where only the run decides."""

    tokens: int | None = None
    of: str = "encoder"

    kind: ClassVar[str] = "cross-attention"

    def kept(self, tokens: int) -> int:
        return self.tokens or 0


@dataclass(frozen=True, slots=True)
class State:
    """A state of fixed size for each sequence: the inputs of a short convolution, and what a recurrence carries.

    ``convolution``: (channels, kernel). ``recurrent``: its shape; ``dtype``: ``"model"`` or ``"float32"``, of the recurrent part.
    """

    name: str
    convolution: tuple[int, int] | None = None
    recurrent: tuple[int, ...] = ()
    dtype: str = "model"

    kind: ClassVar[str] = "state"

    def nbytes(
        self, input_bytes: int, recurrent_bytes: int | None = None, columns_less: int = 0, shards: int = 1
    ) -> int:
        """Bytes a sequence on one of ``shards`` GPUs. ``columns_less``: 1 for engines that keep one input less than the kernel is wide.

        ``recurrent_bytes``: of an element of the recurrent part; None: as its dtype says, in a model of ``input_bytes``.
        """
        own = self.recurrent_bytes(input_bytes) if recurrent_bytes is None else recurrent_bytes
        channels, kernel = self.convolution or (0, columns_less)
        inputs = channels // shards * (kernel - columns_less) * input_bytes
        return inputs + self.recurrent_elements // shards * own

    def recurrent_bytes(self, model_bytes: int) -> int:
        """Bytes an element of the recurrent part."""
        return 4 if self.dtype == "float32" else model_bytes

    @property
    def recurrent_elements(self) -> int:
        return math.prod(self.recurrent) if self.recurrent else 0

    @property
    def arithmetic(self) -> str:
        """In a 16-bit model, as transformers keeps it."""
        return self.explained(2, self.recurrent_bytes(2))

    def explained(self, input_bytes: int, recurrent_bytes: int, columns_less: int = 0) -> str:
        """The arithmetic of `nbytes`."""
        terms = []
        if self.convolution:
            channels, kernel = self.convolution
            terms.append(f"{channels} channels × {kernel - columns_less} convolution inputs × {input_bytes} B")
        if self.recurrent:
            terms.append(f"{' × '.join(map(str, self.recurrent))} × {recurrent_bytes} B")
        return " + ".join(terms)


@dataclass(frozen=True, slots=True)
class Nothing:
    """A layer that keeps nothing: an MLP, or one that reads another layer's cache. ``why``: in one word."""

    why: str = "no-cache"

    @property
    def kind(self) -> str:
        return self.why


Growing = Attention | LatentAttention | CompressedAttention
LayerCache = Growing | State | Nothing
