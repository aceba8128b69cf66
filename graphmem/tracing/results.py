"""Results of operators by the geometry of their arguments: the same call, seen again, need not be worked out again.

Meta kernels are written in Python for many operators and take most of a step's time; layers repeat, so almost every call recurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from graphmem.timeline.events import Value, ValueRef
from graphmem.tracing.known import tensors_in

#: In a template: the operator returns its first argument, which it wrote to.
_ITSELF = object()
_META = torch.device("meta")


class Results:
    """What operators returned, by (operator, geometry of its arguments)."""

    def __init__(self) -> None:
        self._templates: dict[Any, Any] = {}

    def signature(self, func: Any, args: Any, kwargs: dict[str, Any], values: Sequence[Value]) -> Any:
        """A key under which calls with equal results fall; None where there is none. ``args`` hold `ValueRef`."""
        key = (func, _key(args, values), _key(tuple(kwargs.items()), values) if kwargs else None)
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def recall(self, key: Any, args: tuple[Any, ...]) -> Any:
        """A new result like the one seen for this key; NotImplemented if there was none."""
        template = self._templates.get(key, NotImplemented)
        if template is NotImplemented:
            return NotImplemented
        return args[0] if template is _ITSELF else _made(template)

    def learn(self, key: Any, args: tuple[Any, ...], result: Any) -> None:
        """Keep a result, if nothing but geometry is in it: new tensors that own their storage, or the first argument itself."""
        if args and result is args[0]:
            self._templates[key] = _ITSELF
            return
        theirs = {tensor.untyped_storage()._cdata for tensor in tensors_in(args)}
        own: set[int] = set()
        for tensor in tensors_in(result):
            storage = tensor.untyped_storage()
            if storage._cdata in theirs or storage._cdata in own or not _plain(tensor, storage):
                return
            own.add(storage._cdata)
        self._templates[key] = _template(result)


def _plain(tensor: torch.Tensor, storage: torch.UntypedStorage) -> bool:
    """Whether ``empty_strided`` makes the same: no offset, no slack in the storage, no lazy conjugation."""
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else 0
    return (
        type(tensor) is torch.Tensor
        and tensor.device == _META
        and tensor.storage_offset() == 0
        and storage.nbytes() == reach * tensor.element_size()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _key(value: Any, values: Sequence[Value]) -> Any:
    if isinstance(value, ValueRef):
        seen = values[value.index]
        return seen.shape, seen.stride, seen.dtype, seen.block is None
    if isinstance(value, list | tuple):
        return tuple([_key(item, values) for item in value])
    return type(value), value


def _template(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return torch.Size(result.shape), result.stride(), result.dtype
    if isinstance(result, list | tuple):
        return type(result) if isinstance(result, list) else tuple, [_template(item) for item in result]
    return None, result


def _made(template: Any) -> Any:
    if len(template) == 3:
        shape, stride, dtype = template
        return torch.empty_strided(shape, stride, dtype=dtype, device=_META)
    kind, inner = template
    return inner if kind is None else kind([_made(item) for item in inner])
