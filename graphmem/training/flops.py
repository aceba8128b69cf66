"""Floating-point operations of a traced step, by part of it, with PyTorch's own formulas (torch/utils/flop_counter.py)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import flop_registry

from graphmem.timeline.events import Phase, ValueRef

if TYPE_CHECKING:
    from graphmem.tracing.trace import Trace


def flops(trace: Trace) -> dict[Phase, int]:
    """Of the last step, by phase: products of matrices, convolutions and attention; nothing else is counted there either.

    What PyTorch's formula cannot count (the shapes are not as it expects) is left out.
    """
    last = max((op.step for op in trace.ops), default=0)
    found: dict[Phase, int] = {}
    known: dict[str, Any] = {}
    for op in trace.ops:
        if op.step != last:
            continue
        if op.name not in known:
            known[op.name] = _formula(op.name)
        if known[op.name] is None:
            continue
        outputs: list[Any] = [torch.Size(trace.values[index].shape) for index in op.outputs]
        if op.name == "aten.convolution_backward.default":
            outputs = _where_wanted(outputs, op.args[10] if len(op.args) > 10 else op.kwargs["output_mask"])
        args, kwargs = _shapes(trace, op.args), {key: _shapes(trace, value) for key, value in op.kwargs.items()}
        result = outputs[0] if len(outputs) == 1 else tuple(outputs)
        with contextlib.suppress(
            IndexError, TypeError, ValueError, AssertionError
        ):  # a count must not cost the answer about memory
            found[op.phase] = found.get(op.phase, 0) + int(known[op.name](*args, **kwargs, out_val=result))
    return found


def _where_wanted(outputs: list[Any], wanted: Any) -> list[Any]:
    """The gradients in their places, with None where one was not asked for."""
    left = iter(outputs)
    return [next(left, None) if asked else None for asked in wanted]


def _formula(name: str) -> Any:
    """``aten.mm.default`` → the formula of ``aten.mm``; None if there is none."""
    namespace, packet, _ = name.split(".", 2)
    return flop_registry.get(getattr(getattr(torch.ops, namespace), packet, None))


def _shapes(trace: Trace, value: Any) -> Any:
    if isinstance(value, ValueRef):
        return torch.Size(trace.values[value.index].shape)
    if isinstance(value, list | tuple):
        return type(value)(_shapes(trace, item) for item in value)
    return value
