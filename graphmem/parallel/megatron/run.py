"""A training run under Megatron-LM: every pipeline stage of a model's architecture, by formula. Needs neither torch nor weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from graphmem.errors import GraphmemError, TargetError
from graphmem.hardware.nccl import Nccl, nccl_of
from graphmem.parallel.megatron.architecture import Architecture, architecture_of
from graphmem.parallel.megatron.parameters import weights
from graphmem.parallel.megatron.peak import RankMemory, memory_of
from graphmem.parallel.megatron.settings import Megatron
from graphmem.parallel.megatron.stages import chunks_of
from graphmem.report import Report
from graphmem.sources.load import Access, load
from graphmem.tracing.device import Device

#: Tokens of a sequence where none are said, or fewer if the model takes no more.
SEQUENCE = 4096


@dataclass(frozen=True, repr=False)
class MegatronRun:
    """Bytes are ints, of the fullest rank."""

    target: str
    origin: str
    model: Architecture
    settings: Megatron
    device: Device

    @cached_property
    def stages(self) -> tuple[RankMemory, ...]:
        """The ranks of each pipeline stage."""
        return tuple(memory_of(self.model, self.settings, stage, self.device) for stage in range(self.settings.pp))

    @property
    def fullest(self) -> RankMemory:
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def peak(self) -> int:
        """The most bytes of tensors allocated at once."""
        return self.fullest.peak

    @property
    def parameters(self) -> int:
        """Of the fullest stage's ranks."""
        here = chunks_of(
            self.model.layers, self.settings.pp, self.settings.chunks, self.fullest.stage, self.model.predictors
        )
        return sum(weight.numel for chunk in here for weight in weights(self.model, self.settings, chunk))

    @property
    def nccl(self) -> Nccl:
        return nccl_of(self.settings.world)

    @property
    def margin(self) -> int | None:
        """Bytes left on the GPU, its CUDA context and NCCL's buffers counted; below zero, how much is missing. Fragments are not counted."""
        if self.device.memory is None:
            return None
        return self.device.memory - self.device.context_size - self.nccl.usual - self.peak

    @property
    def fits(self) -> bool | None:
        """Whether every rank fits; None where no GPU was named."""
        return None if self.margin is None else self.margin >= 0

    def report(self, by: str | None = None, top: int | None = None, compare_rules: bool = False) -> Report:
        """What ``graphmem train --engine megatron`` prints."""
        from graphmem.parallel.megatron.report import report

        return report(self)

    def __repr__(self) -> str:
        return repr(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __getitem__(self, key: str) -> Any:
        return self.report()[key]


def usual_length(config: Mapping[str, Any]) -> int:
    """`SEQUENCE`, or what a model takes."""
    most = config.get("max_position_embeddings") or config.get("n_positions")
    return min(SEQUENCE, most) if isinstance(most, int) else SEQUENCE


def megatron_run(
    target: Any,
    settings: Megatron,
    device: Device,
    access: Access,
    batch_size: int | None = None,
    seq_len: int | None = None,
) -> MegatronRun:
    """The run of a checkpoint's architecture.

    Raises:
        TargetError: the target is no checkpoint with a config.
        GraphmemError: the layout does not divide the model, or its kind is not known in Megatron's words.
    """
    if not isinstance(target, str):
        raise TargetError("engine 'megatron' builds its own layers from a config.json; name a model id or folder")
    checkpoint = load(target, access)
    configs = [section.config for section in checkpoint.sections if section.config]
    if len(configs) != 1:
        raise TargetError(
            f"{target}: has {'several models' if configs else 'no config.json'}; engine 'megatron' trains one model with a config"
        )
    model = architecture_of(configs[0])
    length = seq_len or usual_length(configs[0])
    run = replace(
        settings, seq_length=length, micro_batch_size=batch_size or settings.micro_batch_size,
        microbatches=max(settings.microbatches, settings.pp) if settings.microbatches == 1 else settings.microbatches,
    )  # fmt: skip
    found = MegatronRun(target, checkpoint.origin, model, run, device)
    if not found.stages:
        raise GraphmemError(f"{target}: no pipeline stages")
    return found
