"""Run a step of a module on meta under the recorder, and hand back its Trace."""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphmem.errors import GraphmemError
from graphmem.timeline.events import Op, Phase
from graphmem.tracing.caches import emptied_caches
from graphmem.tracing.device import Device
from graphmem.tracing.failure import StepError, operator_failed, step_failed
from graphmem.tracing.generation import CACHE_NAMES
from graphmem.tracing.known import KnownValues, tensors_in
from graphmem.tracing.loop import Watch, every_tensor, run_steps
from graphmem.tracing.modules import ModuleStack
from graphmem.tracing.names import torch_release
from graphmem.tracing.on_meta import map_tensors
from graphmem.tracing.presented import Presented
from graphmem.tracing.recorder import Recorder
from graphmem.tracing.rules import REGISTRY
from graphmem.tracing.saved import nodes_of, saved_tensors
from graphmem.tracing.source import raised_at, render
from graphmem.tracing.trace import Trace
from graphmem.tracing.world import World, local
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


def trace_step(
    module: torch.nn.Module,
    inputs: Inputs,
    workload: Workload,
    device: Device,
    target: str,
    world: World | None = None,
) -> Trace:
    """Trace a module that is on meta already; of a ``world``, the part of one rank.

    Raises:
        StepError: the module's own code, the loss or the optimizer raised; says where.
        UnsupportedError: an operator without a kernel for meta and without a rule.
    """

    def run(recorder: Recorder) -> None:
        called = module
        if world is not None:
            with _disable_current_modes():
                world.spread(module)
        on_host = world is not None and world.on_host
        start_state(recorder, module, inputs, on_host)
        if world is not None:
            called = world.wrapped(module)
        run_steps(called, inputs.args, inputs.kwargs, workload, _Recorded(recorder, on_host))

    with world.entered(device.type) if world is not None else contextlib.nullcontext():
        recorder = record(run, device, module, workload.routing)
    settings = settings_of(workload, module, inputs, device)
    return replace(finished(recorder, target, settings), modules=class_names(module), alloc_conf=workload.alloc_conf)


class _Recorded(Watch):
    """Tells the recorder where in the step it is, and what things turn out to be."""

    def __init__(self, recorder: Recorder, on_host: bool = False) -> None:
        self._recorder, self._on_host = recorder, on_host
        self.device = recorder.device.type

    def enter(self, phase: Phase) -> None:
        self._recorder.phase = phase
        self._recorder.ledger.on_host = self._on_host and phase == "optimizer"

    def begin(self, step: int) -> None:
        self._recorder.step = step

    def assume(self, what: str) -> None:
        self._recorder.assume(what)

    def forward_over(self, output: Any, loss: Any) -> None:
        mark_kept(self._recorder, output, loss)
        if loss is not None:
            self._recorder.ledger.mark_alive("activation")

    def updated(self, optimizer: Any, parameters: list[torch.nn.Parameter]) -> None:
        mark_states(self._recorder, optimizer)
        mark_gradients(self._recorder, parameters)

    def over(self, held: tuple[Any, ...]) -> None:
        self._recorder.ledger.close()


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
    _import_dynamo()
    ledger = recorder.ledger
    presented = Presented(device, REGISTRY, ledger.resized, ledger.cache_emptied, ledger.stream_entered)
    recorder.autocast, presented.recorded = presented.autocast, True
    with (
        torch.random.fork_rng(devices=[]), _no_cycle_collection(), emptied_caches(recorder.modules.classes), presented.patched(),
        recorder.modules.following(), recorder, presented,
    ):  # fmt: skip
        yield


def _import_dynamo() -> None:
    """Older releases import it when an optimizer is first made (torch/_compile.py), where our modes would see what it computes."""
    if torch_release() < (2, 9):
        importlib.import_module("torch._dynamo")


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


def start_state(recorder: Recorder, module: torch.nn.Module, inputs: Inputs, on_host: bool = False) -> None:
    """Tell the recorder what is on the device before the step: parameters (unless they lie in host memory), buffers, inputs."""
    with unrecorded():
        recorder.ledger.on_host = on_host
        for name, parameter in module.named_parameters():
            recorder.ledger.start_with(local(parameter), name, "parameter", name.rpartition(".")[0])
        recorder.ledger.on_host = False
        for name, buffer in module.named_buffers():
            recorder.ledger.start_with(local(buffer), name, "buffer", name.rpartition(".")[0])
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
        for owner, state in getattr(optimizer, "state", {}).items():
            parameter = owner if isinstance(owner, torch.Tensor) else None
            for tensor in tensors_in(list(state.values()) if isinstance(state, dict) else state):
                recorder.ledger.mark(local(tensor), "optimizer", local(parameter))
        for tensor in getattr(optimizer, "gradients", ()):  # fp32 ones, beside those of 16-bit parameters
            recorder.ledger.mark(tensor, "gradient")


def mark_gradients(recorder: Recorder, parameters: list[torch.nn.Parameter]) -> None:
    """Gradients that an engine put in place itself, where autograd accumulated into another tensor."""
    with unrecorded():
        for parameter in parameters:
            if parameter.grad is not None:
                recorder.ledger.mark(local(parameter.grad), "gradient", local(parameter))


def cache_tensors(output: Any) -> list[torch.Tensor]:
    """Keys, values and states in the cache of a transformers output."""
    cache = next((own for name in CACHE_NAMES if (own := getattr(output, name, None)) is not None), None)
    found: list[torch.Tensor] = []
    for part in (cache, getattr(cache, "self_attention_cache", None), getattr(cache, "cross_attention_cache", None)):
        layers = getattr(part, "layers", None) or ()
        found += [tensor for layer in layers for value in vars(layer).values() for tensor in every_tensor(value)]
    # MiniMax keeps the states of its linear attention beside the layers.
    return found + every_tensor(getattr(cache, "linear_cache", None))


def _located(error: Exception, recorder: Recorder) -> Exception:
    """The user's own error, with the module, operation and line it came from."""
    if recorder.failed is not None and recorder.failed[0] == id(error):
        call = recorder.failed[1]
        return operator_failed(error, call.name, call.module, render(call.line))
    failed = recorder.modules.failed
    module = failed[2] if failed is not None and failed[0] == id(error) else ""
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
        assumptions=recorder.assumptions, cache_emptied=tuple(recorder.ledger.emptied_at),
    )  # fmt: skip


def settings_of(workload: Workload, module: torch.nn.Module, inputs: Inputs, device: Device) -> dict[str, str]:
    """What was traced and how, in words."""
    said: dict[str, str] = {
        "step": workload.step if workload.trains else ("forward" if workload.grad else "forward, no grad")
    }
    if workload.trains:
        optimizer = workload.optimizer or torch.optim.AdamW
        said["optimizer"] = getattr(optimizer, "__name__", str(optimizer))
    said["mode"] = "training" if module.training else "eval"
    said["inputs"] = ", ".join(f"{name} {described(tensor)}" for name, tensor in inputs.named()) or "none"
    dtypes = dict.fromkeys(str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters())
    said["weights"] = ", ".join(dtypes) or "none"
    said["autocast"] = workload.autocast or "off"
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if implementation:
        said["attention"] = workload.attention or implementation
    if workload.steps > 1:
        said["steps"] = str(workload.steps)
    on_cuda = "workspaces of cuDNN, memory of other processes"
    said["not counted"] = (
        on_cuda if device.type == "cuda" else "memory that libraries take without asking PyTorch (oneDNN)"
    )
    return said


def described(tensor: torch.Tensor) -> str:
    """As ``--input`` writes it: ``int64[1,2048]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}".replace(" ", "")


__all__ = ["Inputs", "StepError", "finished", "record", "recording", "trace_step"]
