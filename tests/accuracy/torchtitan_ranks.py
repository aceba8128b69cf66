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
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

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
    """A rank of FSDP2: float32 shards, bf16 to compute, float32 to reduce.

    Args:
        input_apart: as before PyTorch 2.5.
        tensor: ranks that share a layer, with sequences spread between layers and the loss of spread logits.
    """

    ranks: int
    grouping: Grouping = last_kept
    input_apart: bool = False
    tensor: int = 1

    @property
    def on_host(self) -> bool:
        return False

    def part(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return module, args, kwargs

    @contextlib.contextmanager
    def entered(self, device: str) -> Iterator[None]:
        of_loss = loss_parallel() if self.tensor > 1 else contextlib.nullcontext()
        with fake_world(self.ranks * self.tensor, 0), of_loss:
            self._mesh: DeviceMesh = init_device_mesh(device, (self.ranks, self.tensor), mesh_dim_names=("dp", "tp"))
            yield

    def spread(self, module: nn.Module) -> None:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        model: Any = module.model
        if self.tensor > 1:
            _split(model, self._mesh["tp"])
        self.grouping(model, {"mesh": self._mesh["dp"], "mp_policy": policy})
        # As its first forward would: views of shards only. Here, they belong to their layers and not to the root that loops over them.
        state = model._get_fsdp_state()
        state._lazy_init()
        if self.input_apart:
            for part in model.modules():
                if hasattr(part, "set_custom_reduce_scatter"):
                    part.set_custom_reduce_scatter(_InItsStream(lambda: state._comm_ctx.reduce_scatter_stream))

    def wrapped(self, module: nn.Module) -> nn.Module:
        return module


def _split(model: Any, mesh: DeviceMesh) -> None:
    """The plan of d9bdfbb: between layers a rank has a part of the sequence, within them a part of the heads and inner features."""
    whole, part = Replicate(), Shard(1)
    outside = {
        "tok_embeddings": RowwiseParallel(input_layouts=whole, output_layouts=part),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=part, output_layouts=Shard(-1), use_local_output=False),
    }
    parallelize_module(model, mesh, outside)
    for layer in model.layers:
        plan = {
            "attention_norm": SequenceParallel(),
            "attention": PrepareModuleInput(
                input_layouts=(part, None, None), desired_input_layouts=(whole, None, None)
            ),
            **{f"attention.{name}": ColwiseParallel() for name in ("wq", "wk", "wv")},
            "attention.wo": RowwiseParallel(output_layouts=part),
            "ffn_norm": SequenceParallel(),
            "feed_forward": PrepareModuleInput(input_layouts=(part,), desired_input_layouts=(whole,)),
            **{f"feed_forward.{name}": ColwiseParallel() for name in ("w1", "w3")},
            "feed_forward.w2": RowwiseParallel(output_layouts=part),
        }
        parallelize_module(getattr(layer, "_checkpoint_wrapped_module", layer), mesh, plan)


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
