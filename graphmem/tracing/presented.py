"""What the model's Python sees: tensors that say they are on the traced device, and torch calls that go the device's way.

A ``TorchFunctionMode`` stands above autograd. It answers ``tensor.device`` with ``cuda:0`` (or ``cpu``), sends requests for that
device to meta, and applies the ``call`` rules. It also does `torch.autocast`'s work, which is written for real devices only.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import _disable_current_modes

from graphmem.tracing.autocast import Autocast
from graphmem.tracing.cuda_facade import cuda_answers
from graphmem.tracing.device import Device
from graphmem.tracing.patching import replaced
from graphmem.tracing.rules.registry import Registry

_META = torch.device("meta")
#: Constructors that take data: it is read on the host and copied to the device.
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)


@dataclass(frozen=True, slots=True)
class PythonCall:
    """What a ``call`` rule is told: torch's own function, its arguments, and where the step is traced for."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    device: Device

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def proceed(self) -> Any:
        """The call as it would be without the rule."""
        return self.func(*self.args, **self.kwargs)


class Presented(TorchFunctionMode):
    """Makes meta look like ``device`` to Python code, while it is active."""

    def __init__(
        self,
        device: Device,
        registry: Registry,
        storage_resized: Callable[[torch.UntypedStorage], None],
        cache_emptied: Callable[[], None],
        stream_entered: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._device = device
        self._torch_device = torch.device("cuda", 0) if device.type == "cuda" else torch.device("cpu")
        self._rules = {rule.target: rule.apply for rule in registry.of("call", device.type).values()}
        self._constructors = frozenset(_device_constructors()) - set(_FROM_DATA)
        self.autocast = Autocast(device.type)
        self._storage_resized, self._cache_emptied, self._stream_entered = (
            storage_resized,
            cache_emptied,
            stream_entered,
        )
        self._answers = self._own_answers()
        #: Whether a recorder is below, which would take a tensor that the code itself asks of meta for one of the device's.
        self.recorded = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        answer = self._answers.get(func)
        if answer is not None:
            return answer(func, args, kwargs)
        rule = self._rules.get(func)
        if rule is not None:
            args, kwargs = self.autocast.cast(func, args, kwargs)
            result = rule(PythonCall(func, args, kwargs, self._device))
            if result is not NotImplemented:
                return result
        if "device" in kwargs or func in self._constructors:
            if self.recorded and func in self._constructors and _is_meta(kwargs.get("device")):
                with _disable_current_modes():
                    return func(*args, **kwargs)
            kwargs = self._redirected(func, kwargs)
        args, kwargs = self.autocast.cast(func, args, kwargs)
        return func(*args, **kwargs)

    # -- the device -----------------------------------------------------------------------------------------------

    def _is_here(self, device: Any) -> bool:
        if device is None:
            return False
        return torch.device(device).type == self._torch_device.type

    def _redirected(self, func: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        device = kwargs.get("device")
        if device is None:
            here = func in self._constructors and self._is_here(torch.get_default_device())
            return {**kwargs, "device": _META} if here else kwargs
        return {**kwargs, "device": _META} if self._is_here(device) else kwargs

    def _own_answers(self) -> dict[Any, Callable[..., Any]]:
        tensor = torch.Tensor
        here = self._torch_device

        def presented(func: Any, args: Any, kwargs: Any) -> Any:
            device = func(*args)
            return here if device.type == "meta" else device

        def is_type(name: str) -> Callable[..., bool]:
            def answer(func: Any, args: Any, kwargs: Any) -> bool:
                return (args[0].is_meta and here.type == name) or (bool(func(*args)) and not args[0].is_meta)

            return answer

        def to(func: Any, args: Any, kwargs: Any) -> Any:
            if any(isinstance(value, str | torch.device | int) and not isinstance(value, bool) for value in args[1:2]):
                args = (args[0], _META if self._is_here(args[1]) else args[1], *args[2:])
            if kwargs.get("device") is not None and self._is_here(kwargs["device"]):
                kwargs = {**kwargs, "device": _META}
            if isinstance(kwargs.get("non_blocking"), bool):
                kwargs = {key: value for key, value in kwargs.items() if key != "non_blocking"}
            return func(*args, **kwargs)

        def stays(func: Any, args: Any, kwargs: Any) -> Any:
            return args[0].to(_META)

        def to_host(func: Any, args: Any, kwargs: Any) -> Any:
            return args[0] if here.type == "cpu" else func(*args, **kwargs)

        def from_data(func: Any, args: Any, kwargs: Any) -> Any:
            device = kwargs.get("device")
            if not self._is_here(torch.get_default_device() if device is None else device):
                return func(*args, **kwargs)
            on_host = func(*map(_plain, args[:1]), *args[1:], **{**kwargs, "device": "cpu"})
            return on_host.detach().to(_META).requires_grad_(on_host.requires_grad)

        def numpy(func: Any, args: Any, kwargs: Any) -> Any:
            return func(args[0].to("cpu"), *args[1:], **kwargs)

        answers: dict[Any, Callable[..., Any]] = {
            tensor.device.__get__: presented,
            tensor.is_meta.__get__: lambda func, args, kwargs: False,
            tensor.is_cuda.__get__: is_type("cuda"),
            tensor.is_cpu.__get__: is_type("cpu"),
            tensor.to: to,
            tensor.cpu: to_host,
            tensor.numpy: numpy,
            tensor.tolist: numpy,
        }
        if here.type == "cuda":
            answers[tensor.cuda] = stays
            # A block that another stream still reads is given back a moment later (FSDP1); here everything is done at once.
            answers[tensor.record_stream] = lambda func, args, kwargs: None
        return answers | dict.fromkeys(_FROM_DATA, from_data)

    # -- for as long as it is active ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Hooks that no mode offers, put back afterwards: storage resizing, autocast without a GPU, nested overrides."""
        checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.autocast.available())
            if self._device.type == "cuda":
                stack.enter_context(cuda_answers(self._device, self._cache_emptied, self._stream_entered))
            for module, name in _OVERRIDE_CHECKS:
                stack.enter_context(replaced(module, name, _overridden_by_a_subclass))
            # Hooks run where this mode is not active and see meta; checkpointing compares what they saw with what it sees.
            stack.enter_context(patch.dict(checks, default=_shape_and_dtype))
            stack.enter_context(replaced(torch.UntypedStorage, "resize_", self._resize(torch.UntypedStorage.resize_)))
            grouped = self._grouped(torch._C._group_tensors_by_device_and_dtype)
            stack.enter_context(replaced(torch._C, "_group_tensors_by_device_and_dtype", grouped))
            yield

    def _grouped(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Groups of tensors by device, by which clipping and optimizers decide on foreach kernels: no function that a mode sees."""

        @functools.wraps(original)
        def group(*args: Any, **kwargs: Any) -> Any:
            here = self._torch_device
            return {
                (here if device is not None and device.type == "meta" else device, dtype): lists
                for (device, dtype), lists in original(*args, **kwargs).items()
            }

        return group

    def _resize(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            self._storage_resized(storage)
            return result

        return resize_


def _is_meta(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "meta"


def _shape_and_dtype(tensor: torch.Tensor) -> dict[str, Any]:
    return {"shape": tensor.shape, "dtype": tensor.dtype}


def _override_checks() -> tuple[tuple[Any, str], ...]:
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    originals = {id(getattr(torch.overrides, name)) for name in names}
    inside = [module for path, module in list(sys.modules.items()) if path.partition(".")[0] == "torch"]
    return tuple(
        (module, name)
        for module in inside
        for name in names
        if id(vars(module).get(name)) in originals and module is not torch._C
    )


def _plain(data: Any) -> Any:
    """Data for `torch.tensor` with the tensors in its lists as numbers, which it reads where no mode can answer."""
    if isinstance(data, list | tuple):
        return [item.item() if isinstance(item, torch.Tensor) and item.numel() == 1 else _plain(item) for item in data]
    return data


#: torch's Python functions ask these before running; a mode makes them answer yes, and is then blind to all that runs inside.
_OVERRIDE_CHECKS = _override_checks()


def _overridden_by_a_subclass(*values: Any) -> bool:
    """Whether a tensor subclass among the arguments overrides torch functions, whatever modes are active."""
    plain = (torch.Tensor, torch.nn.Parameter)
    inside = values[0] if len(values) == 1 and isinstance(values[0], tuple | list) else values
    strangers = [value for value in inside if isinstance(value, torch.Tensor) and type(value) not in plain]
    return any(type(value).__torch_function__ is not torch._C._disabled_torch_function_impl for value in strangers)
