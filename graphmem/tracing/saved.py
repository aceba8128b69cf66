"""What autograd keeps for backward: read from the graph of backward functions when forward is over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from graphmem.tracing.known import tensors_in


@cache
def _saved_names(node_type: Any) -> tuple[str, ...]:
    """The attributes under which a backward function holds what it saved, as it was packed."""
    return tuple(name for name in dir(node_type) if name.startswith("_raw_saved_"))


def nodes_of(outputs: list[torch.Tensor]) -> Iterator[Any]:
    """Every backward function that the outputs depend on."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions if following is not None]


def saved_tensors(node: Any) -> list[torch.Tensor]:
    """The tensors one backward function keeps; of hooks, what they packed, if those are tensors. Nothing is unpacked: that may
    run a checkpointed forward again."""
    found: list[torch.Tensor] = []
    kind: Any = type(node)
    for name in _saved_names(kind):
        held = getattr(node, name)
        for saved in held if isinstance(held, list | tuple) else (held,):
            with contextlib.suppress(RuntimeError):  # released already
                found += tensors_in(getattr(saved, "data", None))
    return found
