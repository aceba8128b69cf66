"""One rank of a layout: the meshes it lies in, and its part of a module."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel

from graphmem.errors import UnsupportedError
from graphmem.parallel.context import part_of_sequence, ring
from graphmem.parallel.ddp import replicated
from graphmem.parallel.experts import dispatch
from graphmem.parallel.fake_world import fake_world
from graphmem.parallel.fsdp import shard
from graphmem.parallel.layout import DIMENSIONS, Parallel
from graphmem.parallel.pipeline import Microbatch, Scheduled, cut_for, parts_of, stages_of
from graphmem.parallel.plans import Plans, plans_of
from graphmem.parallel.tensor import split, untied

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
        with warnings.catch_warnings(), self.enter(self.parallel.gpus, self.number):
            # Engines warn of what their users' code might do next (views of outputs, random states of other devices); there is none here.
            warnings.simplefilter("ignore")
            sizes = tuple(getattr(self.parallel, name) for name in DIMENSIONS)
            self._mesh = init_device_mesh(device, sizes, mesh_dim_names=DIMENSIONS)
            for name, size in zip(DIMENSIONS, sizes, strict=True):
                self._named(self._mesh[name], name, size)
            if self.parallel.ep > 1:
                self._expert_mesh = self._experts_laid_out(device)
            with contextlib.ExitStack() as stack:
                if self.parallel.loss_parallel:
                    stack.enter_context(loss_parallel())
                if self.parallel.cp > 1:
                    stack.enter_context(ring(self._mesh["cp"]))
                yield

    @property
    def on_host(self) -> bool:
        return self.parallel.sharding.cpu_offload

    @property
    def stage(self) -> int:
        """Of the pipeline: the outermost dimension."""
        return self.number // (self.parallel.gpus // self.parallel.pp)

    @property
    def microbatches(self) -> int:
        return self.parallel.pipeline.microbatches or self.parallel.pp

    def part(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]]:
        stages = self.parallel.pp
        if self.parallel.cp > 1:
            if stages > 1:
                raise UnsupportedError(
                    "cp and pp together are not run by PyTorch's schedules here; use --engine megatron"
                )
            return module, (), part_of_sequence(module, args, kwargs, self.parallel.cp)
        if stages == 1:
            return module, args, kwargs
        tokens = kwargs.get("input_ids")
        if args or tokens is None or kwargs.get("labels") is None:
            raise UnsupportedError(
                "pp: pipelines are run of a language model of transformers by name, with tokens and labels of its own"
            )
        config: Any = module.config
        text = config.get_text_config(decoder=True)
        named = self.parallel.sharding.param_dtype
        dtype = getattr(torch, named) if named else next(module.parameters()).dtype
        self._batch, self._loss = (
            Microbatch(tuple(tokens.shape), text.hidden_size, dtype, text.vocab_size),
            module.loss_function,
        )
        whole = {name: kwargs[name].repeat(self.microbatches, 1) for name in ("input_ids", "labels")}
        found = stages_of(self.parallel.pipeline, self.stage, stages)
        ends = {"input_ids"} if 0 in found else set()
        ends |= {"labels"} if stages * len(found) - 1 in found else set()
        part = cut_for(module, self.parallel.pipeline, self.stage, stages, self._batch)
        return part, (), {name: value for name, value in whole.items() if name in ends}

    def _scheduled(self, called: list[nn.Module]) -> nn.Module:
        """The rank's stages in their schedule."""
        batch, loss = self._batch, self._loss

        def of_microbatch(logits: Any, labels: Any) -> Any:
            return loss(logits=logits, labels=labels, vocab_size=batch.vocabulary)

        return Scheduled(
            called,
            self.stage,
            self.parallel.pp,
            self.parallel.pipeline,
            self.microbatches,
            self._mesh["pp"].get_group(),
            batch,
            of_microbatch,
        )

    def spread(self, module: nn.Module) -> None:
        for part in parts_of(module):
            self._spread(part)

    def _spread(self, module: nn.Module) -> None:
        parallel = self.parallel
        with untied(module) if parallel.tp > 1 else contextlib.nullcontext():
            plans = plans_of(module, parallel) if parallel.tp > 1 or parallel.ep > 1 else Plans({}, {})
            if parallel.tp > 1:
                split(module, self._mesh["tp"], plans.tensor, parallel.sequence_parallel, parallel.loss_parallel)
        experts = dispatch(module, self._expert_mesh["ep"], self._mesh["tp"], plans.experts) if parallel.ep > 1 else []
        if parallel.shards > 1:
            shard(module, self._shard_mesh(), parallel.sharding, experts, self._expert_shards())

    def wrapped(self, module: nn.Module) -> nn.Module:
        called = parts_of(module)
        if self.parallel.dp > 1 and self.parallel.shards == 1:
            group = self._mesh["dp"].get_group()
            called = [replicated(part, group, self.parallel.buckets) for part in called]
        return self._scheduled(called) if self.parallel.pp > 1 else called[0]

    def _named(self, mesh: DeviceMesh, name: str, size: int) -> None:
        """Remember what a process group is; the same ranks may be one for several dimensions."""
        group = mesh.get_group().group_name
        before = self.groups.get(group)
        self.groups[group] = (f"{before[0]}, {name}", size) if before and before[0] != name else (name, size)

    def _experts_laid_out(self, device: str) -> DeviceMesh:
        """The same ranks as experts see them."""
        parallel = self.parallel
        names = ("pp", "dp", "efsdp", "ep")
        mesh = init_device_mesh(
            device, (parallel.pp, parallel.dp, parallel.expert_shards, parallel.ep), mesh_dim_names=names
        )
        for name, size in (("efsdp", parallel.expert_shards), ("ep", parallel.ep)):
            self._named(mesh[name], name, size)
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
            self._named(flat, "fsdp × cp", parallel.shards)
        name = "fsdp" if parallel.cp == 1 else "fsdp_cp"
        return mesh[name] if parallel.dp == 1 else mesh["dp", name]
