"""Which layers of a module repeat, and with what period; and the module with most of the repetitions left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

#: Units (one period of layers each) that are traced: a first and a last, which may be special; and four between, of which the
#: second is replicated and the third is the proof: each reaches to its neighbours, and none of those is the first or the last.
TRACED_UNITS = 6


@dataclass(frozen=True)
class Stack:
    """A list of layers at ``path``: ``first`` layers of their own, then units of ``period`` layers that repeat, then a rest of one."""

    path: str
    first: int
    period: int
    units: int
    rest: int

    @property
    def left_out(self) -> int:
        """Units that are not traced."""
        return self.units - TRACED_UNITS

    def unit_of(self, module: str) -> int | None:
        """The unit a module path of the shortened module lies in; None outside the repeating part. The rest follows the last unit."""
        if not module.startswith(self.path + "."):
            return None
        index = int(module[len(self.path) + 1 :].partition(".")[0])
        return None if index < self.first else (index - self.first) // self.period

    def shifted(self, module: str, units: int) -> str:
        """The path ``units`` units deeper."""
        if not units or not module.startswith(self.path + "."):
            return module
        index, dot, rest = module[len(self.path) + 1 :].partition(".")
        return f"{self.path}.{int(index) + units * self.period}{dot}{rest}"


def foldable_stacks(module: torch.nn.Module) -> list[Stack]:
    """The outermost lists of layers that repeat often enough to be worth it."""
    found: list[Stack] = []
    for path, child in module.named_modules():
        if not isinstance(child, torch.nn.ModuleList | torch.nn.Sequential) or not path:
            continue
        if any(path.startswith(stack.path + ".") for stack in found):
            continue
        if (stack := _stack(path, list(child))) is not None:
            found.append(stack)
    return found


def _stack(path: str, layers: list[torch.nn.Module]) -> Stack | None:
    if len(layers) <= TRACED_UNITS:
        return None
    parameters = [id(parameter) for layer in layers for parameter in layer.parameters()]
    if len(parameters) != len(set(parameters)):
        return None  # layers that share weights are not copies of each other
    kinds = _kinds(layers)
    for period in range(1, len(layers) // (TRACED_UNITS + 1) + 1):
        first = len(layers)
        while first > 0 and (first > len(layers) - period or kinds[first - 1] == kinds[first - 1 + period]):
            first -= 1
        units, rest = divmod(len(layers) - first, period)
        if units > TRACED_UNITS:
            return Stack(path, first, period, units, rest)
    return None


def _kinds(layers: list[torch.nn.Module]) -> list[int]:
    """A number a layer, equal for layers that are alike in all but their position."""
    described = [_described(layer) for layer in layers]
    # What grows by one from layer to layer (layer_idx) is a position, not a difference; not every layer need have it.
    positions = {
        key
        for key in set().union(*described)
        if _is_position([(index, one[key]) for index, one in enumerate(described) if key in one])
    }
    seen: dict[Any, int] = {}
    kinds = []
    for one in described:
        key = tuple((name, value) for name, value in one.items() if name not in positions)
        kinds.append(seen.setdefault(key, len(seen)))
    return kinds


def _is_position(values: list[tuple[int, Any]]) -> bool:
    return len(values) > 1 and all(type(v) is int and v - index == values[0][1] - values[0][0] for index, v in values)


def _described(layer: torch.nn.Module) -> dict[str, Any]:
    """Everything about a layer that can change what its forward does: classes, tensors, plain attributes, hooks."""
    facts: dict[str, Any] = {}
    for path, module in layer.named_modules():
        facts[path + ":class"] = type(module)
        facts[path + ":training"] = module.training
        facts[path + ":hooks"] = tuple(len(vars(module)[name]) for name in ("_forward_hooks", "_forward_pre_hooks"))
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            facts[f"{path}.{name}"] = (
                tensor if tensor is None else (tensor.shape, tensor.dtype, tensor.requires_grad, tensor.stride())
            )
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(
                value, int | float | str | bool | tuple | type(None) | torch.dtype
            ):
                facts[f"{path}:{name}"] = value if _hashable(value) else repr(value)
            elif callable(value) and not isinstance(value, torch.nn.Module):
                facts[f"{path}:{name}"] = getattr(value, "__qualname__", type(value).__qualname__)
    return facts


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def shortened(module: torch.nn.Module, stacks: list[Stack]) -> Iterator[None]:
    """The module with only the layers that are traced; whole again afterwards."""
    whole = []
    try:
        for stack in stacks:
            owner = module.get_submodule(stack.path)
            whole.append((owner, dict(owner._modules)))
            kept = stack.first + TRACED_UNITS * stack.period + stack.rest
            for name in list(owner._modules)[kept:]:
                del owner._modules[name]
        yield
    finally:
        for owner, modules in whole:
            owner._modules.clear()
            owner._modules.update(modules)
