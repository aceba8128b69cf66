"""Trace a module with its repetitions left out and put them back, or, where that is not exact, trace it whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from graphmem.errors import GraphmemError
from graphmem.tracing.folding.replicate import NotFoldableError, replicate
from graphmem.tracing.folding.stacks import foldable_stacks, shortened
from graphmem.tracing.step import class_names
from graphmem.tracing.trace import Trace


def folded(
    module: torch.nn.Module, traced: Callable[[torch.nn.Module], Trace], glanced: Callable[[torch.nn.Module], Trace]
) -> Trace | None:
    """The trace of the whole module, mostly from running a few of its layers; None where that would not be exact.

    Args:
        module: the user's; whole again afterwards.
        traced: traces a module, on a copy of its own.
        glanced: the same of one forward of which autograd keeps nothing. It is made of the whole too, and is the proof that no layer
            that was left out is special: a model's own loop may do anything at any index.
    """
    stacks = foldable_stacks(module)
    if not stacks:
        return None
    try:
        with shortened(module, stacks):
            trace, glance = traced(module), glanced(module)
        for stack in stacks:
            trace, glance = replicate(trace, stack), replicate(glance, stack)
    except (NotFoldableError, GraphmemError):
        # The model counts its layers itself, or they are not alike after all; whatever is wrong with it shows when run in full.
        return None
    if _seen(glance) != _seen(glanced(module)):
        return None
    said = ", ".join(f"{stack.path} ({stack.units} × {stack.period})" for stack in stacks)
    return replace(trace, settings={**trace.settings, "folded": said}, modules=class_names(module))


def _seen(trace: Trace) -> Any:
    """What two forwards must have in common to be the same: the start, every operation and its results, every event."""
    values, blocks = trace.values, trace.blocks
    operations = [
        (op.name, op.module, op.grad, [(values[v].shape, values[v].stride, values[v].dtype) for v in op.outputs])
        for op in trace.ops
    ]
    return operations, [(event.alloc, blocks[event.block].nbytes, event.op) for event in trace.events]
