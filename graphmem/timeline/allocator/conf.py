"""The allocator's settings, in the grammar of ``PYTORCH_CUDA_ALLOC_CONF`` (``PYTORCH_ALLOC_CONF`` since 2.9).

Source: c10/core/AllocatorConfig.cpp and c10/cuda/CUDAAllocatorConfig.cpp; messages are PyTorch's own where it has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.units import MIB

#: ``roundup_power2_divisions`` has one value an interval: 1 MiB, 2 MiB, … 32 GiB and more.
INTERVALS = 16
#: Requests from this size on have a segment of their own (``kMinLargeAlloc``), so shared ones must be larger.
_SMALLEST_LARGE_MIB = 10
#: Settings that PyTorch takes and that change nothing about which bytes are reserved on the device.
_WITHOUT_EFFECT = {
    "release_lock_on_cudamalloc", "release_lock_on_hipmalloc", "pinned_use_cuda_host_register", "pinned_use_hip_host_register",
    "pinned_num_register_threads", "pinned_use_background_threads", "pinned_reserve_segment_size_mb", "pinned_max_round_threshold_mb",
    "pinned_max_cached_size_mb", "graph_capture_record_stream_reuse", "throw_on_cudamalloc_oom",
}  # fmt: skip


@dataclass(frozen=True)
class AllocConf:
    """What the allocator was told. Sizes are bytes; the defaults are PyTorch's."""

    expandable_segments: bool = False
    #: Blocks of this size and more are never split; None: no limit.
    max_split_size: int | None = None
    #: How much larger than asked an unsplittable block may be and still serve.
    max_non_split_rounding: int = 20 * MIB
    #: Share of the allowed memory above which cached blocks are freed by age; 0: never.
    garbage_collection_threshold: float = 0.0
    #: Divisions between powers of two that a size is rounded up to, by interval; 0 and 1: none.
    roundup_power2_divisions: tuple[int, ...] = (0,) * INTERVALS
    #: Share of the device's total that may be reserved (``set_per_process_memory_fraction``); None: all.
    memory_fraction: float | None = None
    #: What requests from 1 to 10 MiB are cut from, and the page of an expandable segment's large pool.
    large_segment_size: int = 20 * MIB
    #: As it was written.
    text: str = field(default="", compare=False)


def alloc_conf(text: str) -> AllocConf:
    """``"expandable_segments:True,max_split_size_mb:256"`` → `AllocConf`.

    Raises:
        GraphmemError: PyTorch would refuse it; in PyTorch's words where it has any.
        UnsupportedError: ``backend:cudaMallocAsync``, which is another allocator.
    """
    if not isinstance(text, str):
        raise GraphmemError(f"alloc-conf {text!r}: write it as text, such as 'expandable_segments:True'")
    tokens = [token for token in re.split(r"([,:\[\]])", text.replace(" ", "")) if token]
    try:
        return replace(_parsed(_Tokens(tokens)), text=text)
    except _Refused as error:
        raise GraphmemError(f'alloc-conf "{text}": {error}') from None


class _Refused(Exception):
    """Why PyTorch would not take it."""


@dataclass
class _Tokens:
    """What is left of the settings; ``at`` is the index PyTorch's messages give."""

    all: list[str]
    at: int = 0

    def next(self, expected: str) -> str:
        if self.at >= len(self.all):
            raise _Refused(f"ends where {expected} is expected")
        self.at += 1
        return self.all[self.at - 1]

    def check(self, token: str) -> None:
        found = self.next(repr(token))
        if found != token:
            # The words of PyTorch up to 2.8; later releases do not look at the separator, and read on with what is not meant.
            raise _Refused(f"Error parsing CachingAllocator settings, expected {token} but got '{found}'")

    def boolean(self) -> bool:
        found = self.next("True or False")
        if found not in ("True", "False"):
            raise _Refused(f"Expected 'True' or 'False' at index {self.at - 1} in ConfigTokenizer but got '{found}'")
        return found == "True"

    def integer(self) -> int:
        return int(self._number(r"\d+", "whole number"))

    def fraction(self) -> float:
        return float(self._number(r"\d+\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?", "number"))

    def _number(self, pattern: str, what: str) -> str:
        """What a token begins with: C++ (``std::stoull``) does not mind what follows, so that ``64MB`` is 64."""
        found = self.next(f"a {what}")
        match = re.match(pattern, found)
        if match is None:
            raise _Refused(f"'{found}' is no {what}")
        return match.group()

    @property
    def peek(self) -> str:
        return self.all[self.at] if self.at < len(self.all) else ""


def _parsed(tokens: _Tokens) -> AllocConf:
    conf = AllocConf()
    # Wherever it stands, it is read first: other sizes are held against it.
    for at in [at for at, token in enumerate(tokens.all[:-2]) if token == "large_segment_size_mb"]:
        conf = replace(conf, **_large_segment_size(_Tokens(tokens.all, at + 2), conf))
    while tokens.at < len(tokens.all):
        key = tokens.next("a setting")
        if key == "backend":
            tokens.check(":")
            _backend(tokens.next("native or cudaMallocAsync"))
        elif key in _WITHOUT_EFFECT:
            tokens.check(":")
            tokens.next("a value")
        elif key in _SETTINGS:
            tokens.check(":")
            conf = replace(conf, **_SETTINGS[key](tokens, conf))
        else:
            raise _Refused(f"Unrecognized key '{key}' in CUDA allocator config.")
        if tokens.at < len(tokens.all):
            tokens.check(",")
    return conf


def _backend(name: str) -> None:
    if name == "cudaMallocAsync":
        raise UnsupportedError(
            "backend:cudaMallocAsync is CUDA's own allocator; graphmem simulates PyTorch's (backend:native)"
        )
    if name != "native":
        raise _Refused("Unknown allocator backend, options are native and cudaMallocAsync")


def _at_least_a_segment(key: str, tokens: _Tokens, conf: AllocConf) -> int:
    megabytes, least = tokens.integer(), conf.large_segment_size // MIB
    if megabytes < least:
        raise _Refused(f"CachingAllocator option {key} too small, must be >= {least}")
    return megabytes * MIB


def _max_split_size(tokens: _Tokens, conf: AllocConf) -> dict[str, Any]:
    return {"max_split_size": _at_least_a_segment("max_split_size_mb", tokens, conf)}


def _max_non_split_rounding(tokens: _Tokens, conf: AllocConf) -> dict[str, Any]:
    return {"max_non_split_rounding": _at_least_a_segment("max_non_split_rounding_mb", tokens, conf)}


def _large_segment_size(tokens: _Tokens, conf: AllocConf) -> dict[str, Any]:
    megabytes = tokens.integer()
    if megabytes <= _SMALLEST_LARGE_MIB:
        raise _Refused(f"CachingAllocator option large_segment_size_mb must be > {_SMALLEST_LARGE_MIB} MB")
    return {"large_segment_size": megabytes * MIB}


def _threshold(tokens: _Tokens, conf: AllocConf) -> dict[str, Any]:
    share = tokens.fraction()
    if not 0.0 < share < 1.0:
        raise _Refused("garbage_collect_threshold is invalid, set it in (0.0, 1.0)")
    return {"garbage_collection_threshold": share}


def _fraction(tokens: _Tokens, conf: AllocConf) -> dict[str, Any]:
    share = tokens.fraction()
    if not 0.0 <= share <= 1.0:
        raise _Refused("per_process_memory_fraction is invalid, set it in [0.0, 1.0]")
    return {"memory_fraction": share}


def _is_power_of_2(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _divisions(tokens: _Tokens, conf: AllocConf) -> dict[str, Any]:
    """One number for all sizes, or ``[256:1,512:2,>:8]``: MiB from which on so many divisions hold."""
    if tokens.peek != "[":
        value = tokens.integer()
        if not _is_power_of_2(value):
            raise _Refused("For roundups, the divisions has to be power of 2")
        return {"roundup_power2_divisions": (value,) * INTERVALS}
    tokens.check("[")
    found, last, first = list(conf.roundup_power2_divisions), 0, True
    while tokens.peek != "]":
        interval = tokens.next("an interval or ]")
        tokens.check(":")
        value = tokens.integer()
        if value != 0 and not _is_power_of_2(value):
            raise _Refused("For roundups, the divisions has to be power of 2 or 0 to disable roundup")
        if interval == ">":
            found[last:] = [value] * (INTERVALS - last)
        else:
            digits = re.match(r"\d+", interval)
            if digits is None or not _is_power_of_2(int(digits.group())):
                raise _Refused("For roundups, the intervals have to be power of 2")
            last = min(int(digits.group()).bit_length() - 1, INTERVALS - 1)
            if first:
                found[:last] = [value] * last
                first = False
            found[last] = value
        if tokens.peek != "]":
            tokens.check(",")
    tokens.check("]")
    return {"roundup_power2_divisions": tuple(found)}


_SETTINGS: dict[str, Callable[[_Tokens, AllocConf], dict[str, Any]]] = {
    "expandable_segments": lambda tokens, conf: {"expandable_segments": tokens.boolean()},
    "max_split_size_mb": _max_split_size,
    "max_non_split_rounding_mb": _max_non_split_rounding,
    "garbage_collection_threshold": _threshold,
    "roundup_power2_divisions": _divisions,
    "per_process_memory_fraction": _fraction,
    "large_segment_size_mb": _large_segment_size,
}
