"""What a plain network under test is: a module, its inputs and a loss, all of them made by functions without arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def mean_square(outputs: object) -> Tensor:
    """A scalar that depends on every floating or complex tensor in `outputs`."""
    return torch.stack([_real(tensor).square().mean() for tensor in tensors(outputs) if tensor.requires_grad]).sum()


@dataclass(frozen=True)
class Network:
    """`loss(build()(*inputs()))` is one training step's loss, and is taken and differentiated `backwards` times."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    loss: Callable[[Any], Tensor] = mean_square
    backwards: int = 1

    def train(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        """Forward and backward, `backwards` times into the same gradients."""
        for _ in range(self.backwards):
            self.loss(module(*inputs)).backward()


def tensors(value: object) -> Iterator[Tensor]:
    """Every tensor inside lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32 on the CPU, the same in every call."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def integers(below: int, *shape: int, seed: int = 0) -> Tensor:
    """Integers in [0, below) on the CPU, the same in every call."""
    return torch.randint(below, shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
