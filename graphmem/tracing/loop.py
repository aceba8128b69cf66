"""What a step does, whoever watches: the same code runs on meta to be traced and on a device to be measured."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from graphmem.errors import GraphmemError
from graphmem.timeline.events import Phase
from graphmem.tracing.generation import generate
from graphmem.tracing.offload import offloaded
from graphmem.tracing.on_meta import map_tensors
from graphmem.workload import Workload


class Watch:
    """Hears what is going on; does nothing."""

    #: ``cuda`` or ``cpu``: what autocast is asked for.
    device: str = "cpu"

    def enter(self, phase: Phase) -> None:
        """A part of the step begins."""

    def begin(self, step: int) -> None:
        """A step begins, from 0."""

    def assume(self, what: str) -> None:
        """Something had to be chosen."""

    def forward_over(self, output: Any, loss: Any) -> None:
        """Forward and loss are there, backward has not begun."""

    def updated(self, optimizer: Any, parameters: list[torch.nn.Parameter]) -> None:
        """The optimizer has stepped; gradients are still there, unless it drops them."""

    def over(self, held: tuple[Any, ...]) -> None:
        """All is done; output, loss and optimizer are still held, as in the user's loop."""


def run_steps(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], workload: Workload, watch: Watch
) -> None:
    """``workload.steps`` steps of ``module(*args, **kwargs)``, or the generation of tokens.

    Raises:
        GraphmemError: there is nothing to train, or the module does not generate.
    """
    if workload.generation is not None:
        generate(module, kwargs, workload.generation, watch)
    else:
        _steps(module, args, kwargs, workload, watch)


def _steps(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], workload: Workload, watch: Watch
) -> None:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = _made(module, parameters, workload, watch) if workload.trains else None
    scaler = torch.amp.GradScaler(watch.device) if workload.trains and workload.scaler else None
    accumulate = workload.accumulation if workload.trains else 1

    # Names of one loop, as in the user's own: what they held before goes when they are given something new.
    output = loss = None

    #: A pipeline stage runs forward and backward of its micro-batches itself, in its schedule's order.
    own: Callable[..., None] | None = getattr(module, "pass_over", None) if workload.trains else None

    def pass_over() -> None:
        """Forward, loss and backward of one micro-batch."""
        nonlocal output, loss
        watch.enter("forward")
        if own is not None:
            own(watch, args, kwargs)
            return
        with (
            _saved(workload),
            _precision(workload, watch.device),
            torch.set_grad_enabled(workload.trains or workload.grad),
        ):
            output = module(*args, **kwargs)
            if workload.trains:
                watch.enter("loss")
                loss = (workload.loss or partial(default_loss, assume=watch.assume))(output)
                if accumulate > 1 and isinstance(loss, torch.Tensor):
                    loss = loss / accumulate
        watch.forward_over(output, loss)
        if not workload.trains:
            return
        if not isinstance(loss, torch.Tensor) or loss.grad_fn is None:
            raise GraphmemError("the loss depends on no parameter that requires a gradient; pass loss=")
        if not workload.hold_output:
            output = None
        watch.enter("backward")
        (loss if scaler is None else scaler.scale(loss)).backward()

    for step in range(workload.steps):
        watch.begin(step)
        if optimizer is None:
            pass_over()
            continue
        if not _needs_closure(optimizer):
            _zero_grad(optimizer, workload, watch)
            for _ in range(accumulate):
                pass_over()
            watch.enter("optimizer")
            _update(optimizer, scaler, parameters, workload)
        else:

            def closure() -> Any:
                _zero_grad(optimizer, workload, watch)
                pass_over()
                watch.enter("optimizer")
                return loss

            watch.enter("optimizer")
            optimizer.step(closure)
        watch.updated(optimizer, parameters)
    watch.over((output, loss, optimizer))


def _made(module: torch.nn.Module, parameters: list[torch.nn.Parameter], workload: Workload, watch: Watch) -> Any:
    """The workload's optimizer."""
    if not parameters:
        raise GraphmemError("no parameter of the module requires a gradient, so there is nothing to train")
    watch.enter("optimizer")
    make: Any = workload.optimizer or torch.optim.AdamW
    # Some tell matrices of hidden layers from embeddings, which parameters alone do not say.
    return make.of_module(parameters, module) if hasattr(make, "of_module") else make(parameters)


def _zero_grad(optimizer: Any, workload: Workload, watch: Watch) -> None:
    if hasattr(optimizer, "zero_grad"):
        watch.enter("optimizer")
        optimizer.zero_grad() if workload.set_to_none else optimizer.zero_grad(set_to_none=False)


def _needs_closure(optimizer: Any) -> bool:
    """Whether the optimizer evaluates the model itself, as `torch.optim.LBFGS` does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _update(optimizer: Any, scaler: Any, parameters: list[torch.nn.Parameter], workload: Workload) -> None:
    """Clip and step, as PyTorch's AMP examples have it."""
    if workload.clip_norm is not None:
        if scaler is not None:
            scaler.unscale_(optimizer)
        clip = getattr(optimizer, "clip_grad_norm_", None) or partial(torch.nn.utils.clip_grad_norm_, parameters)
        clip(workload.clip_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def _precision(workload: Workload, device: str) -> Any:
    if workload.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(device, dtype=getattr(torch, workload.autocast))


def _saved(workload: Workload) -> Any:
    return offloaded() if workload.offload and workload.trains else contextlib.nullcontext()


def default_loss(output: Any, assume: Callable[[str], None]) -> torch.Tensor:
    """The output's own ``loss``, else its only scalar, else the sum of every floating-point tensor in it that has a gradient.

    Raises:
        GraphmemError: there is none.
    """
    own = getattr(output, "loss", None) if not isinstance(output, dict) or "loss" in output else None
    if isinstance(own, torch.Tensor):
        return own
    tensors = [tensor for tensor in every_tensor(output) if tensor.grad_fn is not None and tensor.is_floating_point()]
    if not tensors:
        raise GraphmemError("the module's output has no floating-point tensor with a gradient, so no loss; pass loss=")
    scalars = [tensor for tensor in tensors if tensor.dim() == 0]
    if len(scalars) == 1:
        return scalars[0]
    assume(
        "the loss is taken as the sum of the outputs; a real one (cross-entropy over logits) needs more, give it with loss="
    )
    return torch.stack([tensor.sum() for tensor in tensors]).sum() if len(tensors) > 1 else tensors[0].sum()


def every_tensor(value: Any) -> list[torch.Tensor]:
    """All tensors of an output: lists, dicts, and transformers' ModelOutput."""
    found: list[torch.Tensor] = []
    map_tensors(value, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found
