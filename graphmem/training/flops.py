"""Floating-point operations of a traced step, by part of it, with PyTorch's own formulas (torch/utils/flop_counter.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import flop_registry

from graphmem.timeline.events import Phase, ValueRef

if TYPE_CHECKING:
    from graphmem.tracing.trace import Trace


def flops(trace: Trace) -> dict[Phase, int]:
    """Of the last step, by phase: products of matrices, convolutions and attention; nothing else is counted there either."""
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
        outputs = [torch.Size(trace.values[index].shape) for index in op.outputs]
        args, kwargs = _shapes(trace, op.args), {key: _shapes(trace, value) for key, value in op.kwargs.items()}
        count = known[op.name](*args, **kwargs, out_val=outputs[0] if len(outputs) == 1 else tuple(outputs))
        found[op.phase] = found.get(op.phase, 0) + int(count)
    return found


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
