"""What a step did to memory: blocks, the operations that made them, and the order they came and went. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

#: What a block is, in the words of PyTorch's own profiler; ``overhead`` (the CUDA context) is no block of the allocator.
Kind = Literal[
    "parameter", "buffer", "gradient", "activation", "temporary", "optimizer", "kv_cache", "workspace", "communication"
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]

#: The part of a step an operation ran in. ``recompute`` is forward code run again during backward, by checkpointing; generating
#: tokens has a ``prefill`` of the prompt and a ``decode`` for each token.
Phase = Literal["forward", "loss", "backward", "recompute", "optimizer", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the graph: its geometry, and the block its storage lies in (None: host memory)."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    #: torch's name without the prefix: ``float32``.
    dtype: str
    block: int | None


@dataclass(frozen=True, slots=True)
class Block:
    """One storage from allocation to release, or a kernel's own scratch memory. ``nbytes`` is what was asked for."""

    nbytes: int
    kind: Kind
    #: Index of the operation that allocated it; None where it was there when the step began.
    op: int | None
    #: Path of the module it belongs to: the owner of a parameter, gradient or state, else the module that ran.
    module: str
    shape: tuple[int, ...]
    dtype: str
    #: The parameter's, buffer's or input's name; what a library's workspace is for; else empty.
    name: str = ""
    #: The CUDA stream that was current, from 0, the default one: the allocator keeps a pool for each.
    stream: int = 0


@dataclass(frozen=True, slots=True)
class ValueRef:
    """Where an argument of an operation was a tensor: its index in ``Trace.values``."""

    index: int


@dataclass(frozen=True, slots=True)
class Group:
    """Where an argument of an operation was a process group: its name, and how many ranks it has."""

    name: str
    size: int


def refs_in(value: Any) -> list[int]:
    """The indices of all values in an operation's arguments, nested lists included."""
    if isinstance(value, ValueRef):
        return [value.index]
    if isinstance(value, list | tuple):
        return [index for item in value for index in refs_in(item)]
    return []


@dataclass(frozen=True, slots=True)
class Op:
    """One ATen call. ``args`` and ``kwargs`` hold a `ValueRef` where the call had a tensor."""

    name: str
    module: str
    phase: Phase
    #: Which repetition of the step, from 0.
    step: int
    #: ``file.py:123`` of the Python line that called it; in backward, of the forward line it differentiates.
    line: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: Indices in ``Trace.values``.
    outputs: tuple[int, ...]
    #: The backward function that ran it (``AddmmBackward0``); empty outside backward.
    node: str = ""
    #: Values that autograd keeps for the backward of this operation.
    saved: tuple[int, ...] = ()
    #: Whether grad mode was on.
    grad: bool = True

    def __repr__(self) -> str:
        where = ", ".join(part for part in (self.phase, self.module, self.line) if part)
        return f"<Op {self.name}: {where}>"


class Event(NamedTuple):
    """A block comes or goes, during or after the operation ``op`` (None: after the start state and before the first)."""

    alloc: bool
    block: int
    op: int | None


#: CUDA's caching allocator hands out multiples of this many bytes (``kMinBlockSize`` in c10/cuda/CUDACachingAllocator.cpp).
CUDA_ROUNDING = 512


def rounded(nbytes: int, rounding: int) -> int:
    """``nbytes`` as the allocator counts it; an empty storage is no block at all."""
    return -(-nbytes // rounding) * rounding
