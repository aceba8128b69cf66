"""A module (anybody's, on any device) and inputs → a Trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from graphmem.errors import GraphmemError, TargetError
from graphmem.tracing.device import Device
from graphmem.tracing.folding.fold import folded
from graphmem.tracing.on_meta import Twins, map_tensors, module_on_meta
from graphmem.tracing.step import Inputs, trace_step
from graphmem.tracing.trace import Trace
from graphmem.tracing.world import World
from graphmem.workload import Workload


def trace_module(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    workload: Workload,
    device: Device,
    target: str = "",
    world: World | None = None,
) -> Trace:
    """Trace ``module(*args, **kwargs)``. Neither the module nor the inputs are changed; weights are not read.

    ``world``: the ranks it is spread over; the trace is one rank's.

    Raises:
        TargetError: ``module`` is no module.
        GraphmemError: the step cannot be traced; says where and why.
    """
    if not isinstance(module, torch.nn.Module):
        raise TargetError(f"trace needs a torch.nn.Module, a model id or a folder; this is a {type(module).__name__}")
    target = target or type(module).__name__

    def traced(module: torch.nn.Module) -> Trace:
        # Every run has a copy of its own: models install hooks and fill caches when they are first called.
        copy, inputs = _on_meta(module, args, kwargs)
        return trace_step(copy, inputs, workload, device, target, world)

    def glanced(module: torch.nn.Module) -> Trace:
        copy, inputs = _on_meta(module, args, kwargs)
        for tensor in [*copy.parameters(), *(tensor for _, tensor in inputs.named())]:
            tensor.requires_grad_(False)
        forward = replace(workload, step="forward", grad=workload.trains or workload.grad, steps=1)
        return trace_step(copy, inputs, forward, device, target)

    found = folded(module, traced, glanced) if workload.fold else None
    return traced(module) if found is None else found


def _on_meta(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.nn.Module, Inputs]:
    try:
        copy, data = module_on_meta(module)
    except Exception as error:
        kind = type(module).__name__
        raise GraphmemError(f"{kind} cannot be copied to the meta device ({type(error).__name__}: {error})") from error
    known, twins = dict(data), Twins()

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        like = twins.of(tensor)
        if tensor.device.type != "meta" and not (tensor.is_floating_point() or tensor.is_complex()):
            known[id(like)] = tensor.detach().cpu()
        return like

    return copy, Inputs(map_tensors(args, twin), map_tensors(dict(kwargs), twin), known)
