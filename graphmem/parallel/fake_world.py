"""A world of ranks in one process: collectives that move nothing, between as many ranks as asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist

from graphmem.errors import GraphmemError


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
    import torch.distributed._tools.fake_collectives  # noqa: F401  (registers what collectives do on the meta device)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
