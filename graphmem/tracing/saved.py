"""What autograd keeps for backward: read from the graph of backward functions when forward is over."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from graphmem.tracing.known import tensors_in


@cache
def _saved_names(node_type: Any) -> tuple[str, ...]:
    """The attributes under which a generated backward function shows its saved tensors."""
    names = [name for name in dir(node_type) if name.startswith("_saved_")]
    return tuple(name for name in names if name not in ("_saved_tensors", "_raw_saved_tensors"))


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
    """The tensors one backward function keeps. Those behind hooks (checkpointing, offload) are not on the device, so not listed."""
    found: list[torch.Tensor] = []
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return tensors_in(node.saved_tensors)
    kind: Any = type(node)
    for name in _saved_names(kind):
        try:
            value = getattr(node, name)
        except RuntimeError:  # released already, or a hook that unpacks only in backward
            continue
        found += tensors_in(value)
    return found
