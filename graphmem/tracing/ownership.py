"""Does autograd alone hold a gradient? In eager mode it then adds to it in place; the reference counts tell.

How many references the path through a dispatch mode adds is measured once, on a sum whose parts nobody else can hold.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Ownership(NamedTuple):
    """References to a tensor and to its storage, as seen from inside a dispatch mode."""

    tensor: int
    storage: int


def ownership_of(tensor: torch.Tensor) -> Ownership:
    """Count the references."""
    return Ownership(tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))


class _FirstSum(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Ownership | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and torch._C._current_autograd_node() is not None and self.seen is None:
            self.seen = ownership_of(args[0])
        return func(*args, **(kwargs or {}))


@cache
def sole_ownership() -> Ownership:
    """What `ownership_of` says of a gradient that only the autograd engine holds."""
    with torch.enable_grad(), torch.device("meta"):
        x = torch.empty(2, requires_grad=True)
        with _FirstSum() as mode:
            y = x * 2
            (y.sin() + y.cos()).sum().backward()
    if mode.seen is None:
        raise RuntimeError("autograd summed two gradients without aten.add; graphmem must learn this version of torch")
    return mode.seen
