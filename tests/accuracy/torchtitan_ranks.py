"""A rank of torchtitan's runs: which parameters FSDP2 groups and drops at which commit, and the optimizers of then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from graphmem.parallel.fake_world import fake_world

#: (model, settings of every ``fully_shard``): which parameters go together, and which of them are dropped after forward.
Grouping = Callable[[Any, dict[str, Any]], None]


def last_kept(model: Any, settings: dict[str, Any]) -> None:
    """Each block a group, dropped after forward but for the last; embedding, norm and head are the root's, which keeps them."""
    for index, block in enumerate(model.layers):
        fully_shard(block, **settings, reshard_after_forward=index < len(model.layers) - 1)
    fully_shard(model, **settings)


def always(model: Any, settings: dict[str, Any]) -> None:
    """All blocks are dropped after forward; the root of that PyTorch was not."""
    for block in model.layers:
        fully_shard(block, **settings, reshard_after_forward=True)
    fully_shard(model, **settings)


def never(model: Any, settings: dict[str, Any]) -> None:
    """Nothing is dropped before backward is over."""
    for block in model.layers:
        fully_shard(block, **settings, reshard_after_forward=False)
    fully_shard(model, **settings)


def apart(model: Any, settings: dict[str, Any]) -> None:
    """Since July 2025: the embedding a group, each block, and norm with head, which alone are not dropped after forward."""
    fully_shard(model.tok_embeddings, **settings, reshard_after_forward=True)
    for block in model.layers:
        fully_shard(block, **settings, reshard_after_forward=True)
    fully_shard([model.norm, model.output], **settings, reshard_after_forward=False)
    fully_shard(model, **settings)


class _InItsStream:
    """Reduce-scatter before PyTorch 2.5, whose input came from the stream it runs in."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        with torch.cuda.stream(self._stream()):
            return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> Any:
        return torch.distributed.reduce_scatter_single(
            output_tensor, input_tensor, group=group, op=op, async_op=async_op
        )


@dataclass
class Fsdp2:
    """A rank of FSDP2: float32 shards, bf16 to compute, float32 to reduce. ``input_apart``: as before PyTorch 2.5."""

    ranks: int
    grouping: Grouping = last_kept
    input_apart: bool = False

    @contextlib.contextmanager
    def entered(self, device: str) -> Iterator[None]:
        with fake_world(self.ranks, 0):
            self._mesh: DeviceMesh = init_device_mesh(device, (self.ranks,))
            yield

    def spread(self, module: nn.Module) -> None:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model: Any = module.model
        self.grouping(model, {"mesh": self._mesh, "mp_policy": policy})
        # As its first forward would: views of shards only. Here, they belong to their layers and not to the root that loops over them.
        state = model._get_fsdp_state()
        state._lazy_init()
        if self.input_apart:
            for part in model.modules():
                if hasattr(part, "set_custom_reduce_scatter"):
                    part.set_custom_reduce_scatter(_InItsStream(lambda: state._comm_ctx.reduce_scatter_stream))

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module


class _AdamW(torch.optim.AdamW):
    """Clips norms as the loop does."""

    def clip_grad_norm_(self, most: float) -> None:
        torch.nn.utils.clip_grad_norm_([p for g in self.param_groups for p in g["params"]], most)


def foreach_adamw(parameters: Any) -> torch.optim.Optimizer:
    """The default before February 2025."""
    return _AdamW(parameters, foreach=True)


def fused_adamw(parameters: Any) -> torch.optim.Optimizer:
    """The default since."""
    return _AdamW(parameters, fused=True)
