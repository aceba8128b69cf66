"""A world of ranks in one process: collectives that move nothing, between as many ranks as asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from graphmem.errors import GraphmemError
from graphmem.tracing.patching import replaced
from graphmem.tracing.step import unrecorded


@contextlib.contextmanager
def fake_world(size: int, rank: int) -> Iterator[None]:
    """`torch.distributed`'s default process group is a fake one of ``size`` ranks, seen from ``rank``.

    Raises:
        GraphmemError: there is a process group already.
    """
    if not dist.is_available():
        raise GraphmemError(
            "this build of PyTorch has no torch.distributed, which runs the ranks; install one that has"
        )
    if dist.is_initialized():
        raise GraphmemError(
            "torch.distributed is initialized in this process; trace several ranks in one where it is not"
        )
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    _teach_norms()
    try:
        with _shapes_unseen():
            yield
    finally:
        # What DTensor worked out holds on to this world's groups, and the next one's meshes look the same.
        _clear_sharding_prop_cache()
        dist.destroy_process_group()


@contextlib.contextmanager
def _shapes_unseen() -> Iterator[None]:
    """A DTensor finds a result's shape by running the operator on fake tensors: no work of the step, and not to be recorded."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    found: Callable[..., Any] | None = getattr(ShardingPropagator, name, None)
    if found is None:
        raise GraphmemError(
            f"this PyTorch ({torch.__version__}) has another DTensor than graphmem knows; use 2.6 to 2.13"
        )

    def unseen(*args: Any, **kwargs: Any) -> Any:
        with unrecorded():
            return found(*args, **kwargs)

    with replaced(ShardingPropagator, name, unseen):
        yield


@cache
def _teach_norms() -> None:
    """How graphmem's own operator of a fused RMSNorm is sharded: as its input is, but for the dimensions it normalizes; its weight's gradient
    is a sum over ranks."""
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    whole = Replicate()

    def forward(x: Any, shape: Any, weight: Any) -> Any:
        along = [([Shard(d), Shard(d)], [Shard(d), None, whole]) for d in range(x.ndim - len(shape))]
        return [([whole, whole], [whole, None, whole]), *along]

    def backward(grad: Any, x: Any, shape: Any, rstd: Any, weight: Any) -> Any:
        along = [
            ([Shard(d), Partial()], [Shard(d), Shard(d), None, Shard(d), whole]) for d in range(x.ndim - len(shape))
        ]
        return [([whole, whole], [whole, whole, None, whole, whole]), *along]

    register_sharding(torch.ops.graphmem.fused_rms_norm.default)(forward)
    register_sharding(torch.ops.graphmem.fused_rms_norm_backward.default)(backward)
