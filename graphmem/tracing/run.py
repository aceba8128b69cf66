"""A module (anybody's, on any device) and inputs → a Trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from graphmem.errors import GraphmemError, TargetError
from graphmem.tracing.device import Device
from graphmem.tracing.folding.fold import folded
from graphmem.tracing.on_meta import map_tensors, module_on_meta
from graphmem.tracing.step import Inputs, trace_step
from graphmem.tracing.trace import Trace
from graphmem.workload import Workload


def trace_module(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    workload: Workload,
    device: Device,
    target: str = "",
) -> Trace:
    """Trace ``module(*args, **kwargs)``. Neither the module nor the inputs are changed; weights are not read.

    Raises:
        TargetError: ``module`` is no module.
        GraphmemError: the step cannot be traced; says where and why.
    """
    if not isinstance(module, torch.nn.Module):
        raise TargetError(f"trace needs a torch.nn.Module, a model id or a folder; this is a {type(module).__name__}")
    try:
        on_meta, data = module_on_meta(module)
    except Exception as error:
        raise GraphmemError(
            f"{type(module).__name__} cannot be copied to the meta device ({type(error).__name__}: {error})"
        ) from error
    known = dict(data)

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        like = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        if tensor.device.type != "meta" and not (tensor.is_floating_point() or tensor.is_complex()):
            known[id(like)] = tensor.detach().cpu()
        return like.requires_grad_(tensor.requires_grad)

    inputs = Inputs(map_tensors(args, twin), map_tensors(dict(kwargs), twin), known)

    def traced() -> Trace:
        return trace_step(on_meta, inputs, workload, device, target or type(module).__name__)

    return folded(on_meta, traced) if workload.fold else traced()
