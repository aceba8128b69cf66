"""Trace a module with its repetitions left out and put them back, or, where that is not exact, trace it whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from graphmem.errors import GraphmemError
from graphmem.tracing.folding.replicate import NotFoldableError, replicate
from graphmem.tracing.folding.stacks import foldable_stacks, shortened
from graphmem.tracing.step import class_names
from graphmem.tracing.trace import Trace


def folded(module: torch.nn.Module, traced: Callable[[], Trace]) -> Trace:
    """``traced()`` of the whole module, mostly from running a few of its layers."""
    stacks = foldable_stacks(module)
    if not stacks:
        return traced()
    try:
        with shortened(module, stacks):
            trace = traced()
        for stack in stacks:
            trace = replicate(trace, stack)
    except (NotFoldableError, GraphmemError):
        # The model counts its layers itself, or they are not alike after all; whatever is wrong with it shows when run in full.
        return traced()
    said = ", ".join(f"{stack.path} ({stack.units} × {stack.period})" for stack in stacks)
    return replace(trace, settings={**trace.settings, "folded": said}, modules=class_names(module))
