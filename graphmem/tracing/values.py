"""What a ``data`` rule may ask for: the known values of a call's arguments, or a stated assumption in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from graphmem.tracing.known import KnownValues


@dataclass(frozen=True, slots=True)
class Values:
    """The values behind one call of ``func``."""

    func: Any
    known: KnownValues
    assume: Callable[[str], None]
    #: ``balanced`` or ``worst``: what top-k choices among experts are taken to be.
    routing: str
    #: How many floats the optimizer has read so far; None outside of one.
    read_by_optimizer: int | None = None

    def real(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call's true result on the CPU where all its inputs are known, else None."""
        inputs = self.known.inputs(self.func, args, kwargs)
        return None if inputs is None else self.func(*inputs[0], **inputs[1])

    def on_device(self, data: torch.Tensor) -> torch.Tensor:
        """A meta tensor like ``data``, whose values stay known."""
        tensor = torch.empty_strided(data.size(), data.stride(), dtype=data.dtype, device="meta")
        self.known.learn(tensor, data)
        return tensor
