"""A module and settings → the module as it is trained, and the workload of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from graphmem.checkpoint import Basis
from graphmem.errors import GraphmemError
from graphmem.tracing.on_meta import light_copy, map_tensors
from graphmem.training.adapters import adapted
from graphmem.training.checkpointing import checkpointed
from graphmem.training.layouts import Role
from graphmem.training.losses import with_loss_head
from graphmem.training.master import InBackward, MasterWeights
from graphmem.training.optimizers import Chosen, optimizer_named, roles_of
from graphmem.training.quantized import quantize
from graphmem.training.recipes import Recipe
from graphmem.training.settings import Training
from graphmem.workload import Workload


def prepared(module: nn.Module, training: Training) -> tuple[nn.Module, list[str]]:
    """A copy of the module with everything the settings change about it, and what was done, in words.

    Raises:
        GraphmemError: the module does not offer what is asked.
    """
    said: list[str] = []
    recipe = training.precision
    try:
        model = light_copy(module)
    except Exception as error:
        kind = type(module).__name__
        raise GraphmemError(f"{kind} cannot be copied to the meta device ({type(error).__name__}: {error})") from error
    model.train()
    if recipe is not None:
        model = model.to(getattr(torch, recipe.dtype))
    if training.load_in is not None:
        compute = getattr(torch, recipe.dtype) if recipe is not None else _float_dtype(model)
        paths = quantize(model, training.load_in, compute)
        if not paths:
            raise GraphmemError(f"load-in {training.load_in}: {type(module).__name__} has no linear layers to quantize")
        said.append(
            f"{len(paths)} linear layers stored as {training.load_in}, computing in {str(compute).removeprefix('torch.')}"
        )
    with_loss_head(model, training.loss_head)
    if training.loss_head != "full":
        said.append(f"loss: linear layer and cross-entropy, {training.loss_head}")
    if training.checkpointing is not None:
        said.append(f"checkpointed: {checkpointed(model, training.checkpointing, training.save)}")
    if training.adapter is not None:
        model = adapted(model, training.adapter)
        said.append(f"adapter: {training.adapter.words}")
    if recipe is not None and recipe.fp8 is not None:
        from graphmem.training.fp8 import in_fp8

        said.append(in_fp8(model, recipe.fp8))
    return model, said


def _float_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def inputs_in(value: Any, recipe: Recipe | None) -> Any:
    """Floating-point inputs in the dtype of a recipe's weights; under autocast they stay."""
    if recipe is None or recipe.dtype == "float32":
        return value
    dtype = getattr(torch, recipe.dtype)
    return map_tensors(value, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def workload_of(training: Training, base: Workload, device: str) -> Workload:
    """The steps that the settings describe; ``base`` has the loss, the attention, the routing and the allocator's settings."""
    recipe = training.precision
    return replace(
        base, step="train", autocast=recipe.autocast if recipe else None, scaler=bool(recipe and recipe.scaler),
        optimizer=Maker(training, _chosen(training, recipe, device)), steps=training.steps, accumulation=training.accumulation,
        set_to_none=training.set_to_none, clip_norm=training.clip_norm, offload=training.offload, hold_output=False,
    )  # fmt: skip


def _chosen(training: Training, recipe: Recipe | None, device: str) -> Chosen | Callable[[Any], Any]:
    if training.optimizer is not None and not isinstance(training.optimizer, str):
        return training.optimizer
    named = training.optimizer or (recipe.optimizer if recipe else None)
    if recipe is not None and recipe.fp32_states:
        named = "AdamWFp32States"
    return optimizer_named(named or "AdamW", device)


@dataclass(frozen=True)
class Maker:
    """Makes the optimizer of the settings around the chosen one."""

    training: Training
    chosen: Chosen | Callable[[Any], Any]

    @property
    def __name__(self) -> str:
        name = getattr(self.chosen, "__name__", str(self.chosen))
        recipe = self.training.precision
        if recipe is not None and recipe.master:
            return f"{name} on fp32 master weights{', flat' if self.training.flat_buffers else ''}"
        return f"{name}, stepping in backward" if self.training.optimizer_in_backward else name

    @property
    def basis(self) -> Basis:
        """How the optimizer's memory is known."""
        return self.chosen.basis if isinstance(self.chosen, Chosen) else "traced"

    def __call__(self, parameters: Any) -> Any:
        """Where only parameters are known, as for an adapter's own."""
        return self._make(parameters, {})

    def of_module(self, parameters: list[nn.Parameter], module: nn.Module) -> Any:
        """The protocol of `tracing.loop`."""
        recipe, roles = self.training.precision, roles_of(module)
        if recipe is not None and recipe.master:
            return MasterWeights(parameters, self._make, roles, self.training.flat_buffers, recipe.fp32_gradients)
        if self.training.optimizer_in_backward:
            return InBackward(parameters, partial(self._make, roles=roles))
        return self._make(parameters, roles)

    def _make(self, parameters: Any, roles: Mapping[int, Role]) -> Any:
        return self.chosen.of(parameters, roles) if isinstance(self.chosen, Chosen) else self.chosen(parameters)
