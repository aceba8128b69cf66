"""One rank of a layout: the meshes it lies in, and its part of a module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel

from graphmem.parallel.ddp import replicated
from graphmem.parallel.experts import dispatch
from graphmem.parallel.fake_world import fake_world
from graphmem.parallel.fsdp import shard
from graphmem.parallel.layout import DIMENSIONS, Parallel
from graphmem.parallel.plans import Plans, plans_of
from graphmem.parallel.tensor import split

#: Enters a default process group of so many ranks, seen from one of them.
Enter = Callable[[int, int], contextlib.AbstractContextManager[None]]


@dataclass
class Rank:
    """A rank, as `tracing.world.World` has it. ``enter``: where its process groups come from; nothing is sent in a fake world."""

    parallel: Parallel
    number: int = 0
    enter: Enter = fake_world
    #: Process group → its dimension, and how many ranks it has.
    groups: dict[str, tuple[str, int]] = field(default_factory=dict)

    @contextlib.contextmanager
    def entered(self, device: str) -> Iterator[None]:
        with self.enter(self.parallel.gpus, self.number):
            sizes = tuple(getattr(self.parallel, name) for name in DIMENSIONS)
            self._mesh = init_device_mesh(device, sizes, mesh_dim_names=DIMENSIONS)
            for name, size in zip(DIMENSIONS, sizes, strict=True):
                self.groups[self._mesh[name].get_group().group_name] = name, size
            if self.parallel.ep > 1:
                self._expert_mesh = self._experts_laid_out(device)
            with loss_parallel() if self.parallel.loss_parallel else contextlib.nullcontext():
                yield

    def spread(self, module: nn.Module) -> None:
        parallel = self.parallel
        plans = plans_of(module, parallel) if parallel.tp > 1 or parallel.ep > 1 else Plans({}, {})
        if parallel.tp > 1:
            split(module, self._mesh["tp"], plans.tensor, self.parallel.sequence_parallel, self.parallel.loss_parallel)
        experts = []
        if self.parallel.ep > 1:
            experts = dispatch(module, self._expert_mesh["ep"], self._mesh["tp"], plans.experts)
        if self.parallel.shards > 1:
            shard(module, self._shard_mesh(), self.parallel.sharding, experts, self._expert_shards())

    def wrapped(self, module: nn.Module) -> nn.Module:
        if self.parallel.dp > 1 and self.parallel.shards == 1:
            return replicated(module, self._mesh["dp"].get_group(), self.parallel.buckets)
        return module

    def _experts_laid_out(self, device: str) -> DeviceMesh:
        """The same ranks as experts see them."""
        parallel = self.parallel
        names = ("pp", "dp", "efsdp", "ep")
        mesh = init_device_mesh(
            device, (parallel.pp, parallel.dp, parallel.expert_shards, parallel.ep), mesh_dim_names=names
        )
        for name, size in (("efsdp", parallel.expert_shards), ("ep", parallel.ep)):
            self.groups[mesh[name].get_group().group_name] = name, size
        return mesh

    def _expert_shards(self) -> DeviceMesh | None:
        if self.parallel.ep == 1:
            return None
        return self._expert_mesh["efsdp"] if self.parallel.dp == 1 else self._expert_mesh["dp", "efsdp"]

    def _shard_mesh(self) -> DeviceMesh:
        """Of FSDP2's shards, with replicas of them as the outer dimension where there are any."""
        parallel, mesh = self.parallel, self._mesh
        if parallel.cp > 1:  # ranks that share a sequence hold the same parameters, and shard them too
            flat = mesh["fsdp", "cp"]._flatten("fsdp_cp")
            self.groups[flat.get_group().group_name] = "fsdp × cp", parallel.shards
        name = "fsdp" if parallel.cp == 1 else "fsdp_cp"
        return mesh[name] if parallel.dp == 1 else mesh["dp", name]
