"""A module and its inputs on the meta device, with the values of small integer tensors kept beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch


def plain_tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Tensors among a module's attributes that are neither parameters nor buffers."""
    found: list[torch.Tensor] = []
    for child in module.modules():
        for name, value in vars(child).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            values = (
                value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else (value,)
            )
            found += [item for item in values if isinstance(item, torch.Tensor)]
    return found


class Twins:
    """Tensors of the same geometry as others, on another device; those that share a storage, or are the same, go on doing so."""

    def __init__(self, device: str = "meta") -> None:
        self._device = device
        self._by_storage: dict[int, torch.UntypedStorage] = {}
        self._by_tensor: dict[int, torch.Tensor] = {}

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The twin of a tensor, with its hooks."""
        if id(tensor) not in self._by_tensor:
            self._by_tensor[id(tensor)] = self._made(tensor)
        return self._by_tensor[id(tensor)]

    def _made(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._by_storage:
            self._by_storage[storage._cdata] = torch.UntypedStorage(storage.nbytes(), device=self._device)
        twin = torch.empty(0, dtype=tensor.dtype, device=self._device)
        twin.set_(self._by_storage[storage._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
        if isinstance(tensor, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin, tensor.requires_grad)
        twin.requires_grad_(tensor.requires_grad)
        for hook in (tensor._backward_hooks or {}).values():
            twin.register_hook(hook)
        for hook in (getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values():
            twin.register_post_accumulate_grad_hook(hook)
        return twin


def module_on_meta(module: torch.nn.Module) -> tuple[torch.nn.Module, dict[int, torch.Tensor]]:
    """A copy of the module whose every tensor is on meta, with ties kept, and its real integer data by id of the meta tensor.

    The user's own module is never touched. Weights are not copied.
    """
    memo: dict[int, Any] = {}
    data: dict[int, torch.Tensor] = {}
    twins = Twins()
    for tensor in [*module.parameters(), *module.buffers(), *plain_tensors(module)]:
        memo[id(tensor)] = twin = twins.of(tensor)
        if tensor.device.type != "meta" and not (tensor.is_floating_point() or tensor.is_complex()):
            data[id(twin)] = tensor.detach().cpu()
    return copy.deepcopy(module, memo), data


def light_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that may be changed: floating-point tensors on meta, with ties kept; integer ones are the module's own, with their data."""
    twins = Twins()
    memo: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers(), *plain_tensors(module)]:
        memo[id(tensor)] = twins.of(tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor
    return copy.deepcopy(module, memo)


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nesting of lists, tuples and dicts with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value
