"""fp32 master weights beside 16-bit ones, as DeepSpeed, Megatron and Apex train, and optimizers that step inside backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from graphmem.training.layouts import Role


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over fp32 copies of the parameters.

    Args:
        make: the optimizer of the copies: called with them and their roles by id.
        roles: of the parameters, by id.
        flat: copies and gradients lie in one buffer each, as DeepSpeed's fp16 optimizer flattens them (ZeRO §3.2: 6 GB of fp32 buffer for
            1.5 B parameters). Else each gradient is converted on its own and dropped in 16 bit, as Megatron's does.
        fp32_gradients: gradients are added into an fp32 buffer as backward makes them (Megatron-LM's ``main_grad``).
    """

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], make: Callable[[Any, dict[int, Role]], Any], roles: Mapping[int, Role], flat: bool,
        fp32_gradients: bool,
    ) -> None:  # fmt: skip
        super().__init__(parameters, {})
        self._model = list(parameters)
        self._flat = flat
        with torch.no_grad():
            # What is in fp32 already (adapters) is its own master.
            self._masters = (
                [_flattened(self._model)]
                if flat
                else [p if p.dtype == torch.float32 else _copied(p) for p in self._model]
            )
        self._buffer = _like_all(self._model) if fp32_gradients else None
        self._gradients = _views(self._buffer, self._model) if self._buffer is not None else []
        pairs = () if flat else zip(self._model, self._masters, strict=True)
        self._inner = make(self._masters, {id(master): roles[id(p)] for p, master in pairs if id(p) in roles})
        for parameter, gradient in zip(self._model, self._gradients, strict=False):
            parameter.register_post_accumulate_grad_hook(_adding_into(gradient))

    @property
    def gradients(self) -> list[torch.Tensor]:
        """In fp32, as far as they are there."""
        if self._buffer is not None:
            return [self._buffer]
        return [master.grad for master in self._masters if master.grad is not None]

    @torch.no_grad()
    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for master in self._masters:
            master.grad = None
        if self._buffer is not None:
            self._buffer.zero_()

    def clip_grad_norm_(self, max_norm: float) -> None:
        """Clips the fp32 gradients, which is what these engines do."""
        self._give_gradients()
        torch.nn.utils.clip_grad_norm_(self._masters, max_norm)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self._give_gradients()
        self._inner.step()
        sources = _views(self._masters[0], self._model) if self._flat else self._masters
        for parameter, master in zip(self._model, sources, strict=True):
            if master is not parameter:
                parameter.copy_(master)
        self._note_states()

    def _note_states(self) -> None:
        """Master weights and what is kept for them, by parameter; of a flat buffer, by no one parameter."""
        for owner, master in zip(["all parameters"] if self._flat else self._model, self._masters, strict=True):
            copy = {} if master is owner else {"master": master}
            self.state[owner] = {**copy, **self._inner.state.get(master, {})}

    @torch.no_grad()
    def _give_gradients(self) -> None:
        if any(
            master.grad is not None and master is not owner
            for master, owner in zip(self._masters, self._model, strict=False)
        ):
            return  # clipping has
        if self._flat:
            buffer = self._buffer if self._buffer is not None else _like_all(self._model)
            if self._buffer is None:
                for view, parameter in zip(_views(buffer, self._model), self._model, strict=True):
                    if parameter.grad is not None:
                        view.copy_(parameter.grad)
            self._masters[0].grad = buffer
            return
        for number, (parameter, master) in enumerate(zip(self._model, self._masters, strict=True)):
            if self._gradients:
                master.grad = self._gradients[number]
            elif parameter.grad is not None and master is not parameter:
                master.grad = parameter.grad.float()
                parameter.grad = None


class InBackward:
    """One optimizer a parameter, stepped as soon as its gradient is there and then dropping it (PyTorch's tutorial "How to save memory by
    fusing the optimizer step into the backward pass")."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], make: Callable[[Any], Any]) -> None:
        self._optimizers = [make([parameter]) for parameter in parameters]
        for parameter, optimizer in zip(parameters, self._optimizers, strict=True):
            parameter.register_post_accumulate_grad_hook(_stepping(optimizer))

    @property
    def state(self) -> dict[Any, Any]:
        """By parameter, as an optimizer's."""
        return {parameter: state for optimizer in self._optimizers for parameter, state in optimizer.state.items()}

    def step(self) -> None:
        """All is done."""


def _stepping(optimizer: Any) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return hook


def _adding_into(gradient: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        gradient.add_(parameter.grad)
        parameter.grad = None

    return hook


def _copied(parameter: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(parameter.detach().to(torch.float32, copy=True))


def _like_all(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    count = sum(parameter.numel() for parameter in parameters)
    return torch.zeros(count, dtype=torch.float32, device=parameters[0].device)


def _flattened(parameters: Sequence[torch.Tensor]) -> torch.nn.Parameter:
    buffer = _like_all(parameters)
    for view, parameter in zip(_views(buffer, parameters), parameters, strict=True):
        view.copy_(parameter)
    return torch.nn.Parameter(buffer)


def _views(buffer: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    parts = buffer.detach().split([math.prod(parameter.shape) for parameter in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
