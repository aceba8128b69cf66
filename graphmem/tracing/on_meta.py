"""A module and its inputs on the meta device, with the values of small integer tensors kept beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch


def _plain_tensors(module: torch.nn.Module) -> list[torch.Tensor]:
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


def module_on_meta(module: torch.nn.Module) -> tuple[torch.nn.Module, dict[int, torch.Tensor]]:
    """A copy of the module whose every tensor is on meta, with ties kept, and its real integer data by id of the meta tensor.

    The user's own module is never touched. Weights are not copied.
    """
    memo: dict[int, Any] = {}
    data: dict[int, torch.Tensor] = {}
    own = [*module.parameters(), *module.buffers()]
    by_storage: dict[int, torch.UntypedStorage] = {}
    for tensor in [*own, *_plain_tensors(module)]:
        if id(tensor) in memo:
            continue
        memo[id(tensor)] = twin = _twin(tensor, by_storage)
        if tensor.device.type != "meta" and not (tensor.is_floating_point() or tensor.is_complex()):
            data[id(twin)] = tensor.detach().cpu()
    return copy.deepcopy(module, memo), data


def _twin(tensor: torch.Tensor, by_storage: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    """A meta tensor of the same geometry; tensors that share a storage go on sharing one."""
    storage = tensor.untyped_storage()
    if storage._cdata not in by_storage:
        by_storage[storage._cdata] = torch.UntypedStorage(storage.nbytes(), device="meta")
    twin = torch.empty(0, dtype=tensor.dtype, device="meta")
    twin.set_(by_storage[storage._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(twin, tensor.requires_grad)
    return twin.requires_grad_(tensor.requires_grad)


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
