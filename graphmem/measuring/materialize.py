"""A module with memory behind it: random weights, moved in the order in which ``module.to(device)`` moves them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from graphmem.tracing.on_meta import Twins, map_tensors, plain_tensors

#: Standard deviation of weights that are made up, as most language models are initialized: activations stay finite.
_SPREAD = 0.02


def materialized(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], device: str
) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Copies on ``device``. What is on meta is made up (weights random, everything else zero); data that is there is copied."""
    twins = Twins(device)
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for tensor in [*_as_moved(module), *plain_tensors(module)]:
            memo[id(tensor)] = twin = twins.of(tensor)
            _fill(twin, tensor)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            twin = twins.of(tensor)
            _fill(twin, tensor)
            return twin

        real_args, real_kwargs = map_tensors(args, moved), map_tensors(dict(kwargs), moved)
    made = copy.deepcopy(module, memo)
    for child in made.modules():
        if isinstance(child, torch.nn.RNNBase):
            child.flatten_parameters()  # as `_apply` does, if at each module's turn and not at the end
    return made, real_args, real_kwargs


def _as_moved(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """``Module._apply``: children first, then a module's own parameters, then its buffers."""
    for child in module.children():
        yield from _as_moved(child)
    yield from (parameter for parameter in module._parameters.values() if parameter is not None)
    yield from (buffer for buffer in module._buffers.values() if buffer is not None)


def _fill(twin: torch.Tensor, like: torch.Tensor) -> None:
    data = twin.detach()
    if like.device.type != "meta":
        data.copy_(like.detach())
    elif data.is_floating_point() or data.is_complex():
        data.normal_(0.0, _SPREAD)
    else:
        data.zero_()
