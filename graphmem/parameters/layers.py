"""Repeated layers: find the stacks (``model.layers.0`` … ``model.layers.31``) and fold identical ones into one row."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graphmem.parameters.stored import StoredTensor

#: stack path, layer number, and the rest: a layer holds modules, so at least two more parts follow the number. A number
#: followed by the parameter itself is an entry of an nn.Sequential, not a layer.
_LAYER = re.compile(r"^(?P<stack>(?:[^.]+\.)*?[^.\d][^.]*)\.(?P<number>\d+)\.(?P<rest>[^.]+\..+)$")


@dataclass(frozen=True)
class LayerGroup:
    """Identical layers of one stack: same tensors, shapes and dtypes."""

    stack: str
    numbers: tuple[int, ...]
    #: Parameters and bytes of the first of them, and of all.
    parameters: int
    nbytes: int
    total_parameters: int
    total_nbytes: int

    @property
    def title(self) -> str:
        """``model.layers.0-31 ×32``."""
        times = f" ×{len(self.numbers)}" if len(self.numbers) > 1 else ""
        return f"{self.stack}.{spell_ranges(self.numbers)}{times}"


def layer_of(name: str) -> tuple[str, int] | None:
    """(stack, number) of a tensor that lies in a layer: the outermost numbered module that holds modules."""
    match = _LAYER.match(name)
    return (match["stack"], int(match["number"])) if match else None


def fold_layers(tensors: Iterable[StoredTensor]) -> tuple[tuple[LayerGroup, ...], tuple[StoredTensor, ...]]:
    """Groups of identical layers in the order they first appear, and the tensors outside any stack of two or more layers."""
    layers: dict[str, dict[int, list[StoredTensor]]] = {}
    outside: list[StoredTensor] = []
    for tensor in tensors:
        place = layer_of(tensor.spec.name)
        if place is None:
            outside.append(tensor)
        else:
            layers.setdefault(place[0], {}).setdefault(place[1], []).append(tensor)
    groups: list[LayerGroup] = []
    for stack, members in layers.items():
        if len(members) == 1:  # one numbered module is no stack
            outside.extend(tensor for layer in members.values() for tensor in layer)
            continue
        by_signature: dict[tuple[object, ...], list[int]] = {}
        for number in sorted(members):
            by_signature.setdefault(_signature(stack, number, members[number]), []).append(number)
        for numbers in by_signature.values():
            one, every = members[numbers[0]], [tensor for number in numbers for tensor in members[number]]
            groups.append(LayerGroup(stack, tuple(numbers), *_size(one), *_size(every)))
    return tuple(groups), tuple(outside)


def _signature(stack: str, number: int, layer: Sequence[StoredTensor]) -> tuple[object, ...]:
    """What makes two layers the same. bitsandbytes' quant_state is JSON text whose length varies with a number in it."""
    prefix = len(f"{stack}.{number}.")
    return tuple(
        sorted(
            (t.spec.name[prefix:], () if ".quant_state." in t.spec.name else t.spec.shape, t.spec.dtype.name)
            for t in layer
        )
    )


def _size(tensors: Sequence[StoredTensor]) -> tuple[int, int]:
    return sum(t.parameters for t in tensors), sum(t.spec.nbytes for t in tensors)


def spell_ranges(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` → ``0-2,5``; an even step is spelled ``0,2,…,22``."""
    if len(numbers) > 3 and len(set(steps := [b - a for a, b in itertools.pairwise(numbers)])) == 1 and steps[0] > 1:
        return f"{numbers[0]},{numbers[1]},…,{numbers[-1]}"
    spelled = [str(a) if a == b else f"{a}-{b}" for a, b in consecutive_runs(numbers)]
    return ",".join(spelled if len(spelled) <= 16 else [*spelled[:8], "…", spelled[-1]])


def consecutive_runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """``[0, 1, 2, 5]`` → ``[(0, 2), (5, 5)]``, for numbers in rising order."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
