"""FSDP2: PyTorch's own `fully_shard`, a layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import _disable_current_modes

from graphmem.errors import GraphmemError
from graphmem.parallel.layout import Sharding
from graphmem.tracing.layers import stacks_of


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    settings: Sharding,
    experts: Sequence[nn.Module] = (),
    expert_mesh: DeviceMesh | None = None,
) -> None:
    """Shard a module over a mesh in place, each of its layers and then what is left, as PyTorch's FSDP2 tutorial does.

    ``mesh``: of one dimension, or of two (HSDP: replicas, shards). ``experts`` are sharded over those ranks that hold the same ones.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    given: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=_dtype(settings.param_dtype), reduce_dtype=_dtype(settings.reduce_dtype)
        ),
    }
    for expert in experts:
        sharded: Any = fully_shard(expert, **{**given, "mesh": expert_mesh})
        # Ranks of one expert see tokens of all: what its gradient is divided by is the number of them (transformers/distributed/fsdp.py).
        sharded.set_gradient_divide_factor(float(mesh.size()))
        if expert_mesh is not None and expert_mesh.size() > 1:
            sharded.set_force_sum_reduction_for_comms(True)
    for _, layers in stacks_of(module):
        for layer in layers:
            fully_shard(layer, reshard_after_forward=settings.reshard_after_forward, **given)
    # The root keeps its parameters after forward unless told otherwise: backward begins with them.
    root: Any = fully_shard(module, **given)
    # As its first forward would: views of shards only. Here, they belong to their layers and not to the root that loops over them.
    root._get_fsdp_state()._lazy_init()
    if settings.cpu_offload:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_to_host)


def _to_host(parameter: Any) -> None:
    """A gradient shard leaves the device as soon as it is reduced. Of the policy itself, which copies, there are no values to be had."""
    from torch.distributed.tensor import DTensor

    with _disable_current_modes():
        here = parameter.grad._local_tensor
        moved = torch.empty(here.shape, dtype=here.dtype, device="meta")
        parameter.grad = DTensor.from_local(
            moved,
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise GraphmemError(f"{name!r} is no floating-point dtype of torch; use bfloat16, float16 or float32")
    return dtype
