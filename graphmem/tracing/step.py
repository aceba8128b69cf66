"""Run a step of a module on meta under the recorder, and hand back its Trace."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphmem.errors import GraphmemError
from graphmem.timeline.events import Op
from graphmem.tracing.caches import emptied_caches
from graphmem.tracing.device import Device
from graphmem.tracing.failure import StepError, operator_failed, step_failed
from graphmem.tracing.known import KnownValues, tensors_in
from graphmem.tracing.modules import ModuleStack
from graphmem.tracing.on_meta import map_tensors
from graphmem.tracing.presented import Presented
from graphmem.tracing.recorder import Recorder
from graphmem.tracing.rules import REGISTRY
from graphmem.tracing.saved import nodes_of, saved_tensors
from graphmem.tracing.source import raised_at, render
from graphmem.tracing.trace import Trace
from graphmem.workload import Workload


@dataclass(frozen=True)
class Inputs:
    """What a module is called with. ``data``: values of meta tensors that are known, by id of the tensor."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    data: Mapping[int, torch.Tensor]

    def named(self) -> list[tuple[str, torch.Tensor]]:
        """Every tensor with a name for people: ``input_0``, or the keyword."""
        found: list[tuple[str, torch.Tensor]] = []
        for name, value in [*((f"input_{i}", arg) for i, arg in enumerate(self.args)), *self.kwargs.items()]:
            tensors: list[torch.Tensor] = []
            map_tensors(value, lambda t, tensors=tensors: tensors.append(t) or t)  # type: ignore[misc]
            found += [(name if len(tensors) == 1 else f"{name}_{i}", tensor) for i, tensor in enumerate(tensors)]
        return found


def trace_step(module: torch.nn.Module, inputs: Inputs, workload: Workload, device: Device, target: str) -> Trace:
    """Trace a module that is on meta already.

    Raises:
        StepError: the module's own code, the loss or the optimizer raised; says where.
        UnsupportedError: an operator without a kernel for meta and without a rule.
    """

    def run(recorder: Recorder) -> None:
        start_state(recorder, module, inputs)
        _run(recorder, module, inputs, workload)

    recorder = record(run, device, module, workload.routing)
    settings = settings_of(workload, module, inputs)
    return replace(finished(recorder, target, settings), modules=class_names(module))


def class_names(module: torch.nn.Module) -> dict[str, str]:
    """Path → class name of every module."""
    return {path: type(child).__name__ for path, child in module.named_modules()}


def record(
    run: Callable[[Recorder], object], device: Device, module: torch.nn.Module | None = None, routing: str = "balanced"
) -> Recorder:
    """Run a function with the recorder active, from nothing allocated. ``module`` names the paths of what it runs.

    Raises:
        StepError: the function raised; says where.
        UnsupportedError: an operator without a kernel for meta and without a rule.
    """
    recorder = Recorder(device, REGISTRY, ModuleStack(module), KnownValues(), routing)
    with recording(recorder, device):
        try:
            run(recorder)
        except GraphmemError:
            raise
        except Exception as error:
            raise _located(error, recorder) from error
        finally:
            recorder.ledger.close()
    return recorder


@contextlib.contextmanager
def recording(recorder: Recorder, device: Device) -> Iterator[None]:
    """The recorder, the presented device and the module stack, active; all of it undone afterwards."""
    presented = Presented(device, REGISTRY, recorder.ledger.resized)
    recorder.autocast = presented.autocast
    with (
        torch.random.fork_rng(devices=[]), _no_cycle_collection(), emptied_caches(recorder.modules.classes), presented.patched(),
        recorder.modules.following(), recorder, presented,
    ):  # fmt: skip
        yield


@contextlib.contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """When Python collects cycles depends on all else it does; a trace must not (and is faster without)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def start_state(recorder: Recorder, module: torch.nn.Module, inputs: Inputs) -> None:
    """Tell the recorder what is on the device before the step: parameters, buffers, inputs."""
    with unrecorded():
        for name, parameter in module.named_parameters():
            recorder.ledger.start_with(parameter, name, "parameter", name.rpartition(".")[0])
        for name, buffer in module.named_buffers():
            recorder.ledger.start_with(buffer, name, "buffer", name.rpartition(".")[0])
        for name, tensor in inputs.named():
            recorder.ledger.start_with(tensor, name, "activation", "")
        for tensor in [*module.buffers(), *(tensor for _, tensor in inputs.named())]:
            if (data := inputs.data.get(id(tensor))) is not None:
                recorder.known.learn(tensor, data)


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Our own tensor work between the step's: seen by no mode."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def _run(recorder: Recorder, module: torch.nn.Module, inputs: Inputs, workload: Workload) -> None:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer: Any = None
    if workload.trains:
        if not parameters:
            raise GraphmemError("no parameter of the module requires a gradient, so there is nothing to train")
        recorder.phase = "optimizer"
        optimizer = (workload.optimizer or torch.optim.AdamW)(parameters)
    output = loss = None
    for recorder.step in range(workload.steps):
        if optimizer is not None and hasattr(optimizer, "zero_grad"):
            recorder.phase = "optimizer"
            optimizer.zero_grad()
        recorder.phase = "forward"
        with _precision(workload, recorder.device), torch.set_grad_enabled(workload.trains or workload.grad):
            output = module(*inputs.args, **inputs.kwargs)
            if workload.trains:
                recorder.phase = "loss"
                loss = (workload.loss or partial(default_loss, assume=recorder.assume))(output)
        mark_kept(recorder, output, loss)
        if not workload.trains:
            continue
        if not isinstance(loss, torch.Tensor) or loss.grad_fn is None:
            raise GraphmemError("the loss depends on no parameter that requires a gradient; pass loss=")
        recorder.phase = "backward"
        loss.backward()
        recorder.phase = "optimizer"
        optimizer.step()
        mark_states(recorder, optimizer)
    recorder.ledger.close()  # before output, loss and optimizer go out of scope, as they do not in the user's loop


def _precision(workload: Workload, device: Device) -> Any:
    if workload.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, workload.autocast))


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


def mark_kept(recorder: Recorder, output: Any, loss: Any) -> None:
    """Forward is over: tell saved activations, outputs and caches from temporaries, and which operation saved them."""
    with unrecorded():
        outputs = every_tensor(output)
        for tensor in outputs:
            recorder.ledger.mark_temporary(tensor, "activation")
        for tensor in cache_tensors(output):
            recorder.ledger.mark(tensor, "kv_cache")
        for node in nodes_of([*outputs, *([loss] if isinstance(loss, torch.Tensor) else [])]):
            recorder.saved(node._sequence_nr(), saved_tensors(node))


def mark_states(recorder: Recorder, optimizer: Any) -> None:
    """What the optimizer keeps for each parameter."""
    with unrecorded():
        for parameter, state in getattr(optimizer, "state", {}).items():
            for tensor in tensors_in(list(state.values()) if isinstance(state, dict) else state):
                recorder.ledger.mark(tensor, "optimizer", parameter)


def cache_tensors(output: Any) -> list[torch.Tensor]:
    """Keys, values and states in the ``past_key_values`` of a transformers output."""
    cache = getattr(output, "past_key_values", None)
    found: list[torch.Tensor] = []
    for part in (cache, getattr(cache, "self_attention_cache", None), getattr(cache, "cross_attention_cache", None)):
        for layer in getattr(part, "layers", None) or ():
            found += [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    return found


def _located(error: Exception, recorder: Recorder) -> Exception:
    """The user's own error, with the module, operation and line it came from."""
    if recorder.failed is not None and recorder.failed[0] is error:
        call = recorder.failed[1]
        return operator_failed(error, call.name, call.module, render(call.line))
    failed = recorder.modules.failed
    module = failed[1] if failed is not None and failed[0] is error else ""
    return step_failed(error, recorder.phase, module, render(raised_at(error)))


def finished(recorder: Recorder, target: str, settings: Mapping[str, str]) -> Trace:
    """The recorder's drafts as a Trace."""
    rendered: dict[Any, str] = {}

    def line(place: Any) -> str:
        if place not in rendered:
            rendered[place] = render(place)
        return rendered[place]

    ops = tuple(
        Op(c.name, c.module, c.phase, c.step, line(c.line), c.args, c.kwargs, c.outputs, c.node, c.saved, c.grad)
        for c in recorder.calls
    )
    return Trace(
        recorder.device, target, settings, ops, tuple(recorder.ledger.values),
        tuple(draft.finished() for draft in recorder.ledger.blocks), tuple(recorder.ledger.events), recorder.ledger.placeholders,
        assumptions=recorder.assumptions,
    )  # fmt: skip


def settings_of(workload: Workload, module: torch.nn.Module, inputs: Inputs) -> dict[str, str]:
    """What was traced and how, in words."""
    said: dict[str, str] = {
        "step": workload.step if workload.trains else ("forward" if workload.grad else "forward, no grad")
    }
    if workload.trains:
        optimizer = workload.optimizer or torch.optim.AdamW
        said["optimizer"] = getattr(optimizer, "__name__", str(optimizer))
    said["mode"] = "training" if module.training else "eval"
    said["inputs"] = ", ".join(f"{name} {_said(tensor)}" for name, tensor in inputs.named()) or "none"
    dtypes = dict.fromkeys(str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters())
    said["weights"] = ", ".join(dtypes) or "none"
    said["autocast"] = workload.autocast or "off"
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if implementation:
        said["attention"] = workload.attention or implementation
    if workload.steps > 1:
        said["steps"] = str(workload.steps)
    said["not counted"] = "reserved but free memory, the CUDA context, workspaces of cuDNN"
    return said


def _said(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}".replace(" ", "")


__all__ = ["Inputs", "StepError", "finished", "record", "recording", "trace_step"]
