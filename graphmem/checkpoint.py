"""What a source hands on: a Checkpoint of one or more ModelSpecs, each a list of stored tensors and a config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from graphmem.dtypes import DType

#: How a number is known: read from a header, built (shapes from the model's own code on the meta device), traced
#: (from the graph of a step), simulated (PyTorch's allocator serving what was traced), formula (cited), calibrated (a measured constant, with its source), assumed (stated).
Basis = Literal["read", "built", "traced", "simulated", "formula", "calibrated", "assumed"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One stored tensor. ``elements`` and ``nbytes`` are as stored; a packed tensor's true count is worked out later."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    is_buffer: bool = False
    trainable: bool = True
    #: Class names of the owning module, most derived first, where a live module gave the tensor; else empty.
    module_classes: tuple[str, ...] = ()
    #: The file that holds it, as the repository lists it; empty for a live module.
    file: str = ""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes in its file."""
        return self.dtype.nbytes(self.elements)

    @property
    def module(self) -> str:
        """Path of the owning module: ``model.layers.0.mlp.down_proj``; empty for a parameter of the root."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class ModelSpec:
    """What is stored of one model: a whole checkpoint, or one component of a pipeline."""

    tensors: tuple[TensorSpec, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    #: Empty for a plain model; ``unet``, ``text_encoder``, ``adapter`` … for a part of something larger.
    name: str = ""
    basis: Basis = "read"
    #: Groups of tensor names that share one storage, owner first; only the owner is in ``tensors``. None: nobody told.
    ties: tuple[tuple[str, ...], ...] | None = None
    #: Bytes a file claims in total without giving shapes (a pickle index): then ``tensors`` is empty.
    declared_bytes: int | None = None
    declared_by: str = ""

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)


@dataclass(frozen=True)
class Checkpoint:
    """A target, read. ``origin`` says in one line where from; ``notes`` what was chosen, ``warnings`` what looks wrong."""

    target: str
    origin: str
    sections: tuple[ModelSpec, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
