"""A world of ranks in one process: collectives that move nothing, between as many ranks as asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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
