"""Pipeline parallelism: a stage's part of a model, run by PyTorch's own schedules (`torch.distributed.pipelining`).

A model of transformers is cut by its own ``pp_plan``: embedding, layers, norm, head. What is on other stages is left out or does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import _disable_current_modes

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.parallel.layout import Pipeline
from graphmem.tracing.layers import stacks_of
from graphmem.tracing.loop import Watch
from graphmem.tracing.on_meta import light_copy


def cut(module: nn.Module, stage: int, stages: int, hidden: tuple[tuple[int, ...], torch.dtype]) -> None:
    """Leave a model its part of a pipeline, in place. ``hidden``: shape and dtype of what stages hand on, of a micro-batch.

    Raises:
        GraphmemError: more stages than layers, or the model has no plan by which to cut it.
    """
    stacks = stacks_of(module)
    plan = getattr(module, "pp_plan", None) or {}
    if len(stacks) != 1 or not plan or not hasattr(module, "get_output_embeddings"):
        raise UnsupportedError(
            f"{type(module).__name__}: pipelines cut a model of transformers that has a pp_plan and one stack of layers"
        )
    path, layers = stacks[0]
    _check(len(layers), stages)
    owner = module.get_submodule(path.rpartition(".")[0])
    setattr(owner, path.rpartition(".")[2], nn.ModuleList(_dealt(layers, stage, stages)))
    first, last = stage == 0, stage == stages - 1
    for name in plan:
        inside = name.rpartition(".")[2]
        holder = module if hasattr(module, inside) else owner
        embeds = getattr(holder, inside, None) is module.get_input_embeddings()
        if inside == path.rpartition(".")[2] or not hasattr(holder, inside):
            continue
        if (embeds and not first) or (not embeds and not last):
            setattr(holder, inside, nn.Identity())
    kind: Any = type(module)
    module.__class__ = _mixed(_Stage, kind)
    module.graphmem_hidden, module.graphmem_ends = hidden, (first, last)


def _check(layers: int, stages: int) -> None:
    if layers < stages:
        raise GraphmemError(f"pp {stages}: the model has {layers} layers, fewer than stages")


def _dealt(layers: list[nn.Module], stage: int, stages: int) -> list[nn.Module]:
    """As evenly as can be; where it does not divide, the first stages have one more."""
    each, rest = divmod(len(layers), stages)
    start = stage * each + min(stage, rest)
    return layers[start : start + each + (stage < rest)]


class _Stage:
    """Mixed in before a model's class: tokens or hidden states in, hidden states or logits out."""

    #: Shape and dtype of the hidden states it is given; and what its place in the pipeline is.
    graphmem_hidden: tuple[tuple[int, ...], torch.dtype]
    graphmem_ends: tuple[bool, bool]

    def forward(self, input_ids: torch.Tensor | None = None, labels: Any = None) -> Any:
        model: Any = super()
        first, last = self.graphmem_ends
        if input_ids is None:  # alone, outside of a schedule
            shape, dtype = self.graphmem_hidden
            input_ids = torch.empty(shape, dtype=dtype, device=next(self.parameters()).device)  # type: ignore[attr-defined]
        given = {"input_ids" if first else "inputs_embeds": input_ids}
        if last:
            return model.forward(**given, use_cache=False).logits
        return model.base_model(**given, use_cache=False).last_hidden_state


@cache  # one class for all copies of a module
def _mixed(mixin: Any, cls: Any) -> type:
    return type(cls.__name__, (mixin, cls), {})


class Chunks(nn.Module):  # type: ignore[misc]
    """Several stages of one rank, each a part of the model."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


@dataclass(frozen=True)
class Microbatch:
    """What goes through a pipeline at a time: tokens' shape, and the width, dtype and vocabulary of what comes of them."""

    shape: tuple[int, int]
    width: int
    dtype: torch.dtype
    vocabulary: int

    @property
    def hidden(self) -> tuple[tuple[int, ...], torch.dtype]:
        """Of hidden states, which stages hand on."""
        return (*self.shape, self.width), self.dtype


def stages_of(pipeline: Pipeline, rank: int, ranks: int) -> list[int]:
    """The stages of a rank: one, or several in a loop, or two in a V (Qi et al. 2023, §6)."""
    chunks = pipeline.chunks_a_rank
    if pipeline.is_v:
        return [rank, 2 * ranks - 1 - rank]
    return [rank + chunk * ranks for chunk in range(chunks)]


def cut_for(module: nn.Module, pipeline: Pipeline, rank: int, ranks: int, batch: Microbatch) -> nn.Module:
    """A rank's part of a model; the module itself is cut where it is one stage.

    Raises:
        GraphmemError: as `cut`.
    """
    stages = stages_of(pipeline, rank, ranks)
    parts = [module if len(stages) == 1 else light_copy(module) for _ in stages]
    for part, stage in zip(parts, stages, strict=True):
        cut(part, stage, ranks * len(stages), batch.hidden)
    return parts[0] if len(parts) == 1 else Chunks(parts)


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The stages' modules."""
    return list(module.parts) if isinstance(module, Chunks) else [module]


class Scheduled(nn.Module):  # type: ignore[misc]
    """Stages whose schedule runs forward and backward of all micro-batches, as `tracing.loop` calls it.

    Args:
        called: each stage's module, or a replica's wrapper of it.
        loss: ``loss(output, target)`` of a micro-batch.
    """

    def __init__(
        self, called: list[nn.Module], rank: int, ranks: int, settings: Pipeline, microbatches: int, group: ProcessGroup, batch: Microbatch,
        loss: Callable[[Any, Any], torch.Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.called = nn.ModuleList(called)
        self._loss, self._watch = loss, Watch()
        for module in called:
            module.register_forward_hook(lambda _, __, output: self._watch.forward_over(output, None))
        numbers = stages_of(settings, rank, ranks)
        count = ranks * len(numbers)
        self._first, self._last = 0 in numbers, count - 1 in numbers
        stages = [_stage(module, number, count, batch, group) for module, number in zip(called, numbers, strict=True)]
        from torch.distributed.pipelining.schedules import get_schedule_class

        kind: Any = get_schedule_class(settings.schedule)
        self._schedule = kind(stages if len(stages) > 1 else stages[0], microbatches, loss_fn=self._of_microbatch)

    def pass_over(self, watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward and backward of all micro-batches."""
        self._watch = watch
        target = {"target": kwargs["labels"], "losses": []} if self._last else {}
        try:
            self._schedule.step(*((kwargs["input_ids"],) if self._first else ()), **target)
        except RuntimeError as error:  # which says what went through the stage; what went wrong is its cause
            raise error.__cause__ or error from None

    def _of_microbatch(self, output: Any, target: Any) -> torch.Tensor:
        found = self._loss(output, target)
        self._watch.forward_over(None, found)
        return found


def _stage(module: nn.Module, stage: int, stages: int, batch: Microbatch, group: ProcessGroup) -> Any:
    """PyTorch's stage. Shapes are said beforehand; else ranks would ask each other for them, which in a fake world nobody answers."""
    from torch.distributed.pipelining import PipelineStage

    if not hasattr(PipelineStage, "_warmup_forward_vote"):
        raise UnsupportedError(f"pipelines are run by the schedules of PyTorch 2.13; this is {torch.__version__}")
    first, last = stage == 0, stage == stages - 1
    shape, dtype = batch.hidden

    def example(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    device = next(module.parameters()).device
    with _disable_current_modes():  # examples without memory, which no step makes
        given = torch.empty(batch.shape, dtype=torch.int64, device="meta") if first else example(shape)
        made = example((*batch.shape, batch.vocabulary) if last else shape)
        found: Any = PipelineStage(
            module, stage, stages, device, input_args=given, output_args=made, input_grads=None if first else given.detach(),
            output_grads=None if last else made.detach(), group=group,
        )  # fmt: skip
    agreed = torch.ones(1, dtype=torch.int32, device="cpu")
    found._warmup_forward_vote = found._warmup_backward_result = lambda *args, **kwargs: agreed
    return found
