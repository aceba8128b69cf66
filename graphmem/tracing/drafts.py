"""Operations, blocks and storages while a step runs; the Trace is made of them when it is over."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from graphmem.timeline.events import Block, Kind, Phase, refs_in
from graphmem.tracing.source import Place


class Held(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a live storage, and what is known of it."""

    __slots__ = ("block", "key", "nbytes", "values")

    block: int | None
    key: int
    nbytes: int
    #: Geometry (shape, stride, offset) → the latest value with it.
    values: dict[Any, int]


class BlockDraft:
    """A block while the step runs: what it is may still turn out."""

    __slots__ = ("dtype", "holders", "kind", "module", "name", "nbytes", "op", "shape", "stream")

    def __init__(
        self,
        nbytes: int,
        kind: Kind,
        op: int | None,
        module: str,
        shape: tuple[int, ...],
        dtype: str,
        name: str,
        stream: int,
    ) -> None:
        self.nbytes, self.kind, self.op, self.module = nbytes, kind, op, module
        self.shape, self.dtype, self.name, self.stream = shape, dtype, name, stream
        #: Storages that share it: an operation that eager runs in place has two on meta.
        self.holders = 1

    def finished(self) -> Block:
        return Block(self.nbytes, self.kind, self.op, self.module, self.shape, self.dtype, self.name, self.stream)


class CallDraft:
    """An operation while the step runs; ``line`` is rendered only when it is over."""

    __slots__ = ("args", "grad", "kwargs", "line", "module", "name", "node", "outputs", "phase", "saved", "step")

    def __init__(self, name: str, module: str, phase: Phase, step: int, line: Place) -> None:
        self.name, self.module, self.phase, self.step, self.line = name, module, phase, step, line
        self.grad = torch.is_grad_enabled()
        self.node = ""
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.outputs: tuple[int, ...] = ()
        self.saved: tuple[int, ...] = ()

    def values(self) -> list[int]:
        """The values among its arguments and results."""
        return [*refs_in((self.args, tuple(self.kwargs.values()))), *self.outputs]
