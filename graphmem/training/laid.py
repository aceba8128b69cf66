"""An optimizer that allocates what a `Layout` says, where it says so, and computes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from graphmem.tracing.world import local
from graphmem.training.layouts import Layout, Part, Role, Weight


class Laid(torch.optim.Optimizer):
    """Stands for an optimizer whose kernels need a GPU. States come in the first step, as its own do.

    Args:
        options: those of the layout, with the user's in place of defaults.
        roles: of the parameters, by id; those not there are ``other``.
    """

    def __init__(
        self, parameters: Any, layout: Layout, options: Mapping[str, Any] | None = None, roles: Mapping[int, Role] | None = None
    ) -> None:  # fmt: skip
        super().__init__(parameters, {})
        self.layout, self.options = layout, {**layout.options, **(options or {})}
        self._roles = roles or {}
        self._shared: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One parameter after the other, or all at once where the layout says so."""
        alive: list[torch.Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                alive += self._update(parameter)
                if not self.layout.together:
                    alive.clear()

    def _update(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Allocates its states if this is its first step, and what is alive while it is updated."""
        weight = weight_of(parameter, self._roles)
        if not self._shared and self.layout.shared:
            self._shared = [_made(part, parameter) for part in self.layout.shared]
            self.state["shared"] = {"maps": self._shared}
        first = not self.state[parameter]
        if first:
            self.state[parameter]["step"] = 0
            for part in self.layout.states(weight, self.options):
                if not part.paged:
                    self.state[parameter][part.name] = _made(part, parameter)
        needs = self.layout.first_temporaries if first and self.layout.first_temporaries else self.layout.temporaries
        alive = [_made(part, parameter) for part in needs(weight, self.options)]
        local(parameter).copy_(local(parameter))  # stands for the kernel that updates it in place
        return alive


def paged_bytes(
    parameters: Iterable[torch.Tensor], layout: Layout, options: Mapping[str, Any], roles: Mapping[int, Role]
) -> int:
    """Bytes of states in unified memory, beside PyTorch's allocator."""
    given = {**layout.options, **options}
    parts = [
        part for parameter in parameters for part in layout.states(weight_of(parameter, roles), given) if part.paged
    ]
    return sum(math.prod(part.shape) * getattr(torch, part.dtype).itemsize for part in parts)


def weight_of(parameter: torch.Tensor, roles: Mapping[int, Role]) -> Weight:
    """A parameter, or the rank's part of one, as a layout sees it."""
    dtype = str(parameter.dtype).removeprefix("torch.")
    return Weight(tuple(local(parameter).shape), dtype, roles.get(id(parameter), "other"))


def _made(part: Part, like: torch.Tensor) -> torch.Tensor:
    # From the parameter, so that a recorder sees whose they are.
    return local(like).new_zeros(part.shape, dtype=getattr(torch, part.dtype))
