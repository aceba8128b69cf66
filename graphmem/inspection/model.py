"""One spec with everything its tables are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphmem.checkpoint import ModelSpec
from graphmem.parameters.layers import LayerGroup, fold_layers
from graphmem.parameters.roles import Component, components
from graphmem.parameters.stored import StoredTensor, stored_tensors
from graphmem.parameters.ties import Tie, find_ties, without_copies
from graphmem.report import Column

PARAMETERS = Column("parameters", "Parameters", "count")
BYTES = Column("bytes", "Bytes", "bytes")
SHARE = Column("share", "Share", "share")


@dataclass(frozen=True)
class Model:
    """A spec, its tensors with their meaning and role, its ties and its layers."""

    spec: ModelSpec
    tensors: tuple[StoredTensor, ...]
    roles: Mapping[str, Component]
    ties: tuple[Tie, ...]
    groups: tuple[LayerGroup, ...]
    outside: tuple[StoredTensor, ...]

    @property
    def parameters(self) -> int:
        return sum(t.parameters for t in self.tensors)

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest unit a loader places whole: a layer, or a module outside the layers."""
        modules: dict[str, int] = {}
        for tensor in self.outside:
            modules[tensor.spec.module] = modules.get(tensor.spec.module, 0) + tensor.parameters
        return max([group.parameters for group in self.groups] + list(modules.values()), default=0)


def understand(spec: ModelSpec) -> tuple[Model, tuple[str, ...]]:
    """The model behind a spec, and a warning for each thing about its tensors that is not known."""
    stored, warnings = stored_tensors(spec)
    roles = components(spec.tensors)
    ties = find_ties(spec, stored, roles)
    tensors = without_copies(stored, ties)
    return Model(spec, tensors, roles, ties, *fold_layers(tensors)), warnings
