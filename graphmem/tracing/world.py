"""One rank of many: what a step needs to know of the ranks around it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch


class World(Protocol):
    """The ranks a step runs among, seen from one of them."""

    @property
    def on_host(self) -> bool:
        """Whether parameters lie in host memory, and the optimizer works there."""

    def entered(self, device: str) -> AbstractContextManager[None]:
        """Process groups between ``cuda`` or ``cpu`` devices are there, for as long as this lasts."""

    def part(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[torch.nn.Module, tuple[Any, ...], Mapping[str, Any]]:
        """The rank's layers of a module, and what they are called with; the module may be changed."""

    def spread(self, module: torch.nn.Module) -> None:
        """Make a module the rank's part of it, in place: as it is when training begins."""

    def wrapped(self, module: torch.nn.Module) -> torch.nn.Module:
        """What is called instead of the module, and allocates buffers of its own."""


def local(tensor: Any) -> Any:
    """A rank's own part of a `DTensor`; anything else as it is."""
    return getattr(tensor, "_local_tensor", tensor)
