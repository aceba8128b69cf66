"""What the recorder needs to know of an operator, found out once: its schema's aliases and the rules about it."""

from __future__ import annotations

from typing import Any

import torch
from torch._library.custom_ops import OPDEFS

from graphmem.tracing.collectives import communicates
from graphmem.tracing.device import Device
from graphmem.tracing.known import SHAPE_ONLY, tensors_in
from graphmem.tracing.rules.registry import Registry, Rule


class Operator:
    """One overload of an operator, and the rules that hold for it on the traced device."""

    __slots__ = (
        "_written",
        "body",
        "communicates",
        "composite",
        "data",
        "detaches",
        "inplace",
        "mutates",
        "name",
        "output",
        "repeats",
        "scratch",
        "shape_only",
        "takes_lists",
        "view",
    )

    def __init__(self, func: Any, registry: Registry, device: Device) -> None:
        schema = func._schema
        self.name = str(func)
        self.mutates: bool = schema.is_mutable
        self.view = not self.mutates and any(value.alias_info is not None for value in schema.returns)
        self.takes_lists = any(
            "List" in str(argument.type) and "Tensor" in str(argument.type) for argument in schema.arguments
        )
        self.shape_only = func in SHAPE_ONLY
        #: Made of other operators, which is seen only under ``torch.inference_mode``: elsewhere autograd takes it apart first.
        keys = torch._C.DispatchKey
        self.composite = func.has_kernel_for_dispatch_key(
            keys.CompositeImplicitAutograd
        ) and not func.has_kernel_for_dispatch_key(keys.CPU)
        #: PyTorch's own operators written in Python (`torch.library.custom_op`): what they do inside is seen by running it.
        self.body = _body(self.name)
        self._written = [
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]

        def found(kind: Any) -> Rule | None:
            return registry.find(kind, self.name, device.type)

        self.output, self.scratch, self.inplace, self.data = map(found, ("output", "scratch", "inplace", "data"))
        self.composite = self.composite and self.output is None and self.data is None
        #: Autograd detaches what it saves; whoever uses the tensor afterwards means the original.
        self.detaches = self.name == "aten.detach.default"
        #: Whether its result follows from the geometry of its arguments: no view, nothing that changes a storage's size.
        self.repeats = not self.view and not any(
            mark in self.name for mark in ("resize", "set_", ".out", "_out", "lift", "c10d.")
        )
        self.communicates = communicates(self.name)

    def mutated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """The tensors among the arguments that it writes to."""
        values = [args[position] if position < len(args) else kwargs.get(name) for position, name in self._written]
        return tensors_in(values)


def _body(name: str) -> Any:
    """The Python function behind an operator of ``torch.nn``; None for all others, which may launch kernels that meta does not have."""
    namespace, operator, *_ = name.split(".")
    if namespace != "torch_nn":
        return None
    found = OPDEFS.get(f"{namespace}::{operator}")
    return None if found is None else found._init_fn


class _Table(dict[Any, Operator]):
    """Operators by overload, filled as they are met."""

    def __init__(self, registry: Registry, device: Device) -> None:
        super().__init__()
        self._registry, self._device = registry, device

    def __missing__(self, func: Any) -> Operator:
        self[func] = operator = Operator(func, self._registry, self._device)
        return operator


def operator_table(registry: Registry, device: Device) -> dict[Any, Operator]:
    """A mapping from an overload to what is known of it."""
    return _Table(registry, device)
