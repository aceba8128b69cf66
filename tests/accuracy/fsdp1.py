"""PyTorch's first FSDP, `FullyShardedDataParallel`, run for real in a fake world of ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from graphmem.parallel.fake_world import fake_world


class Held(nn.Module):
    """A module in a place of its own, since FSDP wraps instead of changing what it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


@dataclass
class Fsdp1:
    """A rank of it; the module is `Held`.

    Args:
        settings: of every ``FullyShardedDataParallel``.
        after: what is done to the wrapped model, such as checkpointing inside of its units.
    """

    ranks: int
    settings: dict[str, Any] = field(default_factory=dict)
    after: Callable[[nn.Module], None] = lambda model: None

    @property
    def on_host(self) -> bool:
        return False

    def part(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return module, args, kwargs

    @contextlib.contextmanager
    def entered(self, device: str) -> Iterator[None]:
        # When another stream is done with a block is a matter of timing; what is allocated does not depend on it.
        with fake_world(self.ranks, 0), patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None):
            yield

    def spread(self, module: nn.Module) -> None:
        # On meta there is nothing to initialize.
        module.model = FullyShardedDataParallel(module.model, param_init_fn=lambda part: None, **self.settings)  # type: ignore[assignment]
        self.after(module.model)

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module
