"""Expert parallelism: transformers' own, which sends every token to the rank of its expert with an all-to-all, and its result back."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from graphmem.errors import GraphmemError


def dispatch(module: nn.Module, ep_mesh: DeviceMesh, tp_mesh: DeviceMesh, plan: dict[str, str]) -> list[nn.Module]:
    """Give each rank its experts, in place; returns the modules of experts.

    Raises:
        GraphmemError: ranks do not divide the experts.
    """
    from transformers.distributed.expert_parallel import apply_expert_parallelism

    config: Any = module.config
    text = config.get_text_config(decoder=True)
    count = next(
        (
            n
            for key in ("num_experts", "num_local_experts", "n_routed_experts")
            if isinstance(n := getattr(text, key, None), int)
        ),
        0,
    )
    if count % ep_mesh.size():
        raise GraphmemError(f"ep {ep_mesh.size()} does not divide {count} experts")
    apply_expert_parallelism(module, ep_mesh, tp_mesh, plan, "all_to_all")
    return [module.get_submodule(name) for name, style in plan.items() if style == "ep_dispatch_experts"]
