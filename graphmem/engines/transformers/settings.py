"""What ``generate`` is asked for; what cannot be is refused at the door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from graphmem.errors import GraphmemError, nearest
from graphmem.training.settings import LoadIn
from graphmem.workload import Attention

#: Caches by name: transformers' ``cache_implementation``, and what its quantized caches store.
CACHES = (
    "dynamic", "static", "offloaded", "offloaded-static", "fp8", "quanto-int4", "quanto-int2", "hqq-int8", "hqq-int4", "hqq-int2",
)  # fmt: skip


@dataclass(frozen=True)
class Generating:
    """The settings of one call of ``generate``. ``prompt`` and ``new_tokens`` are in tokens."""

    prompt: int = 1024
    new_tokens: int = 128
    batch_size: int = 1
    #: ``num_beams``.
    beams: int = 1
    #: ``num_return_sequences``: samples of each prompt.
    samples: int = 1
    #: One of `CACHES`.
    cache: str = "dynamic"
    #: torch's name of the dtype of the weights; None: as stored.
    dtype: str | None = None
    #: ``nf4``, ``nf4-double`` or ``int8``: linear weights quantized by bitsandbytes.
    load_in: str | None = None
    attention: Attention | None = None
    #: Whether prefill makes the logits of every token of the prompt, as a plain forward does.
    all_logits: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            ("prompt", self.prompt), ("new-tokens", self.new_tokens), ("batch-size", self.batch_size), ("beams", self.beams),
            ("samples", self.samples),
        ):  # fmt: skip
            if value < 1:
                raise GraphmemError(f"{name} {value}: must be 1 or more")
        if self.cache not in CACHES:
            raise GraphmemError(f"cache {self.cache!r}: {nearest(self.cache, CACHES)}")
        if self.beams > 1 and self.samples > self.beams:
            raise GraphmemError(f"samples {self.samples}: beam search returns at most its {self.beams} beams")
        if self.load_in is not None and self.load_in not in get_args(LoadIn):
            raise GraphmemError(f"load-in {self.load_in!r}: {nearest(self.load_in, get_args(LoadIn))}")

    @property
    def kept_tokens(self) -> int:
        """Tokens in the cache when all is generated: the last one is never fed."""
        return self.prompt + self.new_tokens - 1
