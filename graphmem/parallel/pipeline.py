"""Pipeline parallelism: a stage's part of a model, run by PyTorch's own schedules (`torch.distributed.pipelining`).

A model of transformers is cut by its own ``pp_plan``: embedding, layers, norm, head. What is on other stages is left out or does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.parallel.layout import Pipeline
from graphmem.tracing.layers import stacks_of
from graphmem.tracing.loop import Watch


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
    module.__class__ = _mixed(_First if first else _Later, kind)
    module.graphmem_hidden = hidden


def _check(layers: int, stages: int) -> None:
    if layers < stages:
        raise GraphmemError(f"pp {stages}: the model has {layers} layers, fewer than stages")


def _dealt(layers: list[nn.Module], stage: int, stages: int) -> list[nn.Module]:
    """As evenly as can be; where it does not divide, the first stages have one more."""
    each, rest = divmod(len(layers), stages)
    start = stage * each + min(stage, rest)
    return layers[start : start + each + (stage < rest)]


class _First:
    """Mixed in before a model's class: tokens in, hidden states (or logits) out."""

    def forward(self, input_ids: torch.Tensor, labels: Any = None) -> Any:
        return super().forward(input_ids=input_ids, use_cache=False).logits  # type: ignore[misc]


class _Later:
    """The same of a stage that is given hidden states, of `graphmem_hidden` where it stands alone."""

    graphmem_hidden: tuple[tuple[int, ...], torch.dtype]

    def forward(self, hidden: torch.Tensor | None = None, labels: Any = None) -> Any:
        if hidden is None:
            shape, dtype = self.graphmem_hidden
            device = next(self.parameters()).device  # type: ignore[attr-defined]
            hidden = torch.empty(shape, dtype=dtype, device=device)
        return super().forward(inputs_embeds=hidden, use_cache=False).logits  # type: ignore[misc]


@cache  # one class for all copies of a module
def _mixed(mixin: Any, cls: Any) -> type:
    return type(cls.__name__, (mixin, cls), {})


class Scheduled(nn.Module):  # type: ignore[misc]
    """A stage whose schedule runs forward and backward of all micro-batches, as `tracing.loop` calls it.

    Args:
        given, made: a micro-batch's input and output of the stage, for their shapes.
        loss: ``loss(output, target)``, on the last stage.
    """

    def __init__(
        self, module: nn.Module, stage: int, stages: int, settings: Pipeline, microbatches: int, group: ProcessGroup, given: torch.Tensor,
        made: torch.Tensor, loss: Callable[[Any, Any], torch.Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.module = module
        self._first, self._last = stage == 0, stage == stages - 1
        self._loss, self._watch = loss, Watch()
        module.register_forward_hook(lambda _, __, output: self._watch.forward_over(output, None))
        self._schedule = _schedule_of(self, stage, stages, settings, microbatches, group, given, made)

    def pass_over(self, watch: Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward and backward of all micro-batches."""
        self._watch = watch
        target = {"target": kwargs["labels"], "losses": []} if self._last else {}
        self._schedule.step(*((kwargs["input_ids"],) if self._first else ()), **target)

    def loss(self, output: Any, target: Any) -> torch.Tensor:
        """Of a micro-batch on the last stage."""
        found = self._loss(output, target)
        self._watch.forward_over(None, found)
        return found


def _schedule_of(
    scheduled: Scheduled, stage: int, stages: int, settings: Pipeline, microbatches: int, group: ProcessGroup, given: torch.Tensor,
    made: torch.Tensor,
) -> Any:  # fmt: skip
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

    kind = get_schedule_class(settings.schedule)
    if issubclass(kind, PipelineScheduleMulti):
        raise UnsupportedError(
            f"schedule {settings.schedule}: several stages a rank are not run yet; use 1F1B or GPipe, or --engine megatron --chunks"
        )
    if not hasattr(PipelineStage, "_warmup_forward_vote"):
        raise UnsupportedError(f"pipelines are run by the schedules of PyTorch 2.13; this is {torch.__version__}")
    first, last = stage == 0, stage == stages - 1
    # Shapes are said beforehand; else ranks would ask each other for them, which in a fake world nobody answers.
    found: Any = PipelineStage(
        scheduled.module, stage, stages, given.device, input_args=given, output_args=made, input_grads=None if first else given.detach(),
        output_grads=None if last else made.detach(), group=group,
    )  # fmt: skip
    found._warmup_forward_vote = found._warmup_backward_result = lambda *args, **kwargs: torch.ones(
        1, dtype=torch.int32, device="cpu"
    )
    return kind(found, microbatches, loss_fn=scheduled.loss)
