"""Known values: small tensors whose data follows from Python alone keep a real copy beside their meta tensor.

Models branch on them (``position_ids``, masks, lengths). The copy is of the *storage*, so that views need nothing and an
in-place operation on one view is seen by all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

#: Elements up to which values are followed. Floats are seldom branched on; integers and booleans are what masks are made of.
FLOAT_LIMIT, INTEGER_LIMIT = 2**14, 2**22

aten = torch.ops.aten
#: Their result does not depend on the values of their input, only on its shape.
SHAPE_ONLY = {
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default, aten.new_ones.default,
    aten.new_full.default, aten.empty_like.default, aten.new_empty.default, aten.rand_like.default, aten.randn_like.default,
    aten.zero_.default, aten.fill_.Scalar,
}  # fmt: skip
_CPU = torch.device("cpu")


def _follows(shape: Iterable[int], dtype: torch.dtype) -> bool:
    limit = FLOAT_LIMIT if dtype.is_floating_point or dtype.is_complex else INTEGER_LIMIT
    return math.prod(shape) <= limit


class KnownValues:
    """The real copies, by the storage of the meta tensor they belong to."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}

    def forget(self, key: int) -> None:
        """The storage is gone, or written with data nobody knows."""
        self._storages.pop(key, None)

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor's data on the CPU (shared: writing to it writes to every view), or None where it is unknown."""
        if tensor.device.type != "meta":
            return tensor if _follows(tensor.shape, tensor.dtype) else None
        storage = self._storages.get(tensor.untyped_storage()._cdata)
        if storage is None:
            return None
        view = torch.empty(0, dtype=tensor.dtype, device=_CPU)
        return view.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether `of` would give the data."""
        if tensor.device.type != "meta":
            return _follows(tensor.shape, tensor.dtype)
        return tensor.untyped_storage()._cdata in self._storages

    def learn(self, tensor: torch.Tensor, data: torch.Tensor) -> None:
        """Keep ``data`` (on the CPU, of the tensor's shape) as the values of a meta tensor with a storage of its own."""
        if not _follows(tensor.shape, tensor.dtype):
            return
        storage = torch.UntypedStorage(tensor.untyped_storage().nbytes(), device=_CPU)
        view = torch.empty(0, dtype=tensor.dtype, device=_CPU)
        view.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
        data = data.expand(view.shape)
        for dim, stride in enumerate(view.stride()):  # of what is repeated without memory of its own, one is written
            if stride == 0:
                view, data = view.narrow(dim, 0, min(1, view.shape[dim])), data.narrow(dim, 0, min(1, data.shape[dim]))
        view.copy_(data)
        self._storages[tensor.untyped_storage()._cdata] = storage

    def inputs(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The arguments with every tensor replaced by its data, for running ``func`` for real; None where one is unknown."""
        shape_only = func in SHAPE_ONLY

        def real(tensor: torch.Tensor) -> torch.Tensor:
            data = self.of(tensor)
            if data is None:
                if not shape_only or not _follows(tensor.shape, tensor.dtype):
                    raise _UnknownError
                data = torch.zeros(tensor.shape, dtype=tensor.dtype, device=_CPU)
            return data

        try:
            return _map(args, real), {key: _map(value, real) for key, value in kwargs.items()}
        except _UnknownError:
            return None

    def follow(self, func: Any, real: tuple[Any, Any], result: Any, mutates: bool) -> None:
        """Run ``func`` for real on the data of its inputs and keep the data of its results."""
        outputs = [t for t in tensors_in(result) if t.device.type == "meta"]
        if not mutates and not all(_follows(t.shape, t.dtype) for t in outputs):
            return
        # For in-place operations this writes into the copies themselves; for others the outputs are new.
        try:
            data = func(*real[0], **real[1])
        except (
            NotImplementedError
        ):  # the CPU lacks a kernel that the device has (histc of integers): unknown from here on
            for tensor in outputs:
                self.forget(tensor.untyped_storage()._cdata)
            return
        if not mutates or not all(self.has(tensor) for tensor in outputs):
            for tensor, values in zip(outputs, tensors_in(data), strict=False):
                self.learn(tensor, values)


class _UnknownError(Exception):
    """An input has no known values."""


def _map(value: Any, real: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return real(value)
    if isinstance(value, list | tuple):
        return type(value)(_map(item, real) for item in value)
    if isinstance(value, torch.device):
        return _CPU
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor of an operator's arguments or results, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []
