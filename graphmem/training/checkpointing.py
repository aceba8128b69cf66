"""Activation checkpointing: which parts of the forward run again during backward instead of being saved.

All of it goes through `torch.utils.checkpoint`, without reentry; what is saved and what runs again follows from PyTorch's own code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from graphmem.errors import GraphmemError, nearest
from graphmem.tracing.layers import stacks_of

#: The ways that ``--checkpointing`` names; ``every-K`` stands for a number.
WAYS = ("model", "layers", "every-K", "sqrt", "selective")
#: What selective checkpointing saves unless told otherwise: products of matrices and attention, as torchtitan's list does.
SELECTED = (
    "aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution", "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_cudnn_attention",
)  # fmt: skip

_run = partial(checkpoint, use_reentrant=False)


def checkpointed(module: nn.Module, way: str, save: Sequence[str] = ()) -> str:
    """Make ``module`` checkpoint its layers, in place; returns what was done, in words.

    Args:
        way: ``model`` (its own ``gradient_checkpointing_enable``), ``layers`` (each), ``every-3`` (three layers in a segment), ``sqrt``
            (segments of √L layers: Chen et al. 2016), ``selective`` (each layer, but the results of ``save`` are kept).
        save: operators by name (``aten.mm``), for ``selective``; `SELECTED` if empty.

    Raises:
        GraphmemError: no such way, or the module does not offer it.
    """
    if way == "model":
        return _models_own(module)
    stacks = layers_of(module)
    if way == "layers":
        for layer in _flat(stacks):
            _wrap(layer, _Checkpointed)
        return f"each of {len(_flat(stacks))} layers"
    if way == "selective":
        for layer in _flat(stacks):
            _wrap(layer, _Selective)
            layer._graphmem_saved = tuple(_operators(save or SELECTED))
        return f"each of {len(_flat(stacks))} layers, saving {', '.join(save or SELECTED)}"
    return _segments(stacks, way)


def layers_of(module: nn.Module) -> list[list[nn.Module]]:
    """Its stacks of layers.

    Raises:
        GraphmemError: there is none.
    """
    found = [layers for _, layers in stacks_of(module)]
    if not found:
        raise GraphmemError(
            f"checkpointing: {type(module).__name__} has no list of layers of one class (nn.ModuleList) to checkpoint; "
            "call torch.utils.checkpoint in its forward"
        )
    return found


def _flat(stacks: list[list[nn.Module]]) -> list[nn.Module]:
    return [layer for layers in stacks for layer in layers]


def _models_own(module: nn.Module) -> str:
    renamed = getattr(module, "activation_checkpointing_enable", None)  # since transformers 5.23
    enable = renamed or getattr(module, "gradient_checkpointing_enable", None)
    if enable is None or not getattr(module, "supports_gradient_checkpointing", True):
        raise GraphmemError(
            f"checkpointing 'model': {type(module).__name__} has no gradient_checkpointing_enable of its own; use 'layers'"
        )
    name = "activation_checkpointing_kwargs" if renamed else "gradient_checkpointing_kwargs"
    enable(**{name: {"use_reentrant": False}})
    return "the model's own gradient_checkpointing_enable"


# -- a layer that runs under checkpoint -----------------------------------------------------------------------------


class _Checkpointed:
    """Mixed in before a layer's own class: a call of the layer is a checkpointed call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = partial(super().__call__, **kwargs)  # type: ignore[misc]
        return _run(call, *args) if torch.is_grad_enabled() else call(*args)


class _Selective:
    """The same, with the results of some operators kept."""

    _graphmem_saved: tuple[Any, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = partial(super().__call__, **kwargs)  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return call(*args)
        contexts = partial(create_selective_checkpoint_contexts, partial(_policy, self._graphmem_saved))
        return _run(call, *args, context_fn=contexts)


def _policy(saved: tuple[Any, ...], ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    packet = getattr(func, "overloadpacket", func)
    return CheckpointPolicy.MUST_SAVE if packet in saved else CheckpointPolicy.PREFER_RECOMPUTE


def _operators(names: Sequence[str]) -> list[Any]:
    """``aten.mm`` → the operator.

    Raises:
        GraphmemError: torch has no such operator.
    """
    found = []
    for name in names:
        namespace, _, operator = name.rpartition(".")
        packet = getattr(getattr(torch.ops, namespace or "aten"), operator, None)
        if packet is None:
            raise GraphmemError(f"checkpointing: torch has no operator {name!r}; write them as aten.mm")
        found.append(packet)
    return found


def _wrap(layer: nn.Module, mixin: type) -> None:
    """Put ``mixin`` before the layer's class; the class keeps its name, for reports and for whoever compares layers."""
    cls = type(layer)
    layer.__class__ = _mixed(mixin, cls)


_MIXED: dict[tuple[type, type], type] = {}


def _mixed(mixin: type, cls: type) -> type:
    if (mixin, cls) not in _MIXED:
        _MIXED[mixin, cls] = type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
    return _MIXED[mixin, cls]


# -- segments of several layers -------------------------------------------------------------------------------------


def _segments(stacks: list[list[nn.Module]], way: str) -> str:
    head, _, number = way.partition("-")
    if way != "sqrt" and not (head == "every" and number.isdecimal() and int(number) > 0):
        raise GraphmemError(f"checkpointing {way!r}: {nearest(way, WAYS)}")
    said = []
    for layers in stacks:
        size = math.isqrt(len(layers) - 1) + 1 if way == "sqrt" else int(number)
        for first in range(0, len(layers), size):
            segment = _Segment(layers[first : first + size])
            for position, layer in enumerate(segment.layers):
                _wrap(layer, _InSegment)
                layer._graphmem_segment = segment
                # Not alike, for whoever folds repeated layers: only whole segments are.
                layer.place_in_segment = f"{position} of {len(segment.layers)}"
        said.append(f"{-(-len(layers) // size)} segments of {size} layers")
    return ", ".join(said)


class _Segment:
    """Layers that run again together. All but the last only note what they are called with; the last runs them all."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self.waiting: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def call(self, layer: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A layer's turn."""
        if not args or not isinstance(args[0], torch.Tensor):
            raise GraphmemError(
                "checkpointing in segments: layers must be called with the hidden states first; use 'layers'"
            )
        if self.waiting and args[0] is not self.waiting[-1][1][0]:
            raise GraphmemError(
                "checkpointing in segments: the model does more between its layers than passing hidden states on; use 'layers'"
            )
        self.waiting.append((call, args, kwargs))
        if layer is not self.layers[-1]:
            return args[0]
        waiting, self.waiting = self.waiting, []

        def run(hidden: torch.Tensor) -> Any:
            for number, (layer_call, others, named) in enumerate(waiting):
                result = layer_call(hidden, *others[1:], **named)
                if number + 1 == len(waiting):
                    return result
                hidden = result[0] if isinstance(result, tuple) else result
            return None

        return _run(run, args[0])


class _InSegment:
    """Mixed in before the class of a layer that belongs to a segment."""

    _graphmem_segment: _Segment

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = super().__call__  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return call(*args, **kwargs)
        return self._graphmem_segment.call(self, call, args, kwargs)
