"""transformers' own plans for spreading a model: module or parameter → style, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.parallel.layout import Parallel


@dataclass(frozen=True)
class Plans:
    """Styles by name, of tensor and of expert parallelism; what the experts' plan takes, the other leaves out."""

    tensor: dict[str, str]
    experts: dict[str, str]


def plans_of(module: nn.Module, parallel: Parallel) -> Plans:
    """The plans for a layout.

    Raises:
        GraphmemError: the module is no model of transformers, its class has no plan, or this transformers is too old to apply it.
    """
    resolve = getattr(module, "_resolve_parallel_plans", None)
    if resolve is None:
        raise UnsupportedError(
            f"{type(module).__name__}: tensor and expert parallelism take the plan of a model of transformers, 5.23 or newer; split your own module "
            "with torch.distributed.tensor.parallel, and trace it on one rank"
        )
    for what, size, plan in (("tensor", parallel.tp, "tp_plan"), ("expert", parallel.ep, "ep_plan")):
        if size > 1 and not getattr(module, plan, None):
            raise UnsupportedError(
                f"{type(module).__name__}: transformers has no plan for its {what} parallelism (base_model_{plan}); leave --{plan[:2]} out"
            )
    from transformers.distributed.configuration_utils import DistributedConfig

    sizes = {
        "tp_size": parallel.tp,
        "ep_size": parallel.ep,
        "fsdp_size": parallel.shards,
        "dp_replicate_size": parallel.dp,
    }
    try:
        tensor, experts, _ = resolve(DistributedConfig(pp_size=1, **sizes))
    except ValueError as error:
        raise GraphmemError(f"tp {parallel.tp}, ep {parallel.ep}: {error}") from None
    # What another pipeline stage has is not here.
    parameters = dict(module.named_parameters())
    modules = {name: child for name, child in module.named_modules() if not isinstance(child, nn.Identity)}
    absent = {name for name in tensor if name not in parameters and name not in modules}
    split = {
        name: style
        for name, style in tensor.items()
        if name not in absent and not any(t.startswith(f"{name}.") for t in absent)
    }
    if parallel.tp > 1 and not split:
        raise UnsupportedError(
            f"{type(module).__name__}: its plan for tensor parallelism names none of its modules; leave --tp out"
        )
    return Plans(split, dict(experts))
