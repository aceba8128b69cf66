"""One spec with everything its tables are computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from graphmem.checkpoint import ModelSpec
from graphmem.inference.kv_cache import CacheLayout, NoCache, cache_layout
from graphmem.parameters.layers import LayerGroup, fold_layers
from graphmem.parameters.loading import Linears, linears_of
from graphmem.parameters.roles import Component, components
from graphmem.parameters.stored import StoredTensor, stored_tensors
from graphmem.parameters.ties import Tie, find_ties, without_copies
from graphmem.report import Column

PARAMETERS = Column("parameters", "Parameters", "count")
BYTES = Column("bytes", "Bytes", "bytes")
OF_PARAMETERS = Column("share", "Of parameters", "share", detail=True)
OF_BYTES = Column("share", "Of bytes", "share", detail=True)


@dataclass(frozen=True)
class Model:
    """A spec, its tensors with their meaning and role, its ties and its layers. What tables share is computed once."""

    spec: ModelSpec
    tensors: tuple[StoredTensor, ...]
    roles: Mapping[str, Component]
    ties: tuple[Tie, ...]
    groups: tuple[LayerGroup, ...]
    outside: tuple[StoredTensor, ...]

    @cached_property
    def parameters(self) -> int:
        return sum(t.parameters for t in self.tensors)

    @cached_property
    def linears(self) -> Linears:
        """What quantizing loaders would pack, and how many parameters they would not."""
        return linears_of(self.tensors, self.roles)

    @cached_property
    def cache(self) -> CacheLayout | NoCache:
        """The cache its config implies."""
        return cache_layout(self.spec.config)

    @cached_property
    def trainable(self) -> int:
        """Parameters that require gradients; packed weights cannot."""
        return sum(
            t.parameters for t in self.tensors if t.spec.trainable and t.spec.dtype.bits >= 16 and t.spec.dtype.floating
        )

    @cached_property
    def is_quantized(self) -> bool:
        """Whether some weights are stored in fewer than 16 bits, or as integers that are packed somehow."""
        return any(
            t.kind == "scale" or (t.kind == "parameter" and (t.spec.dtype.bits < 16 or not t.spec.dtype.floating))
            for t in self.tensors
        )

    @cached_property
    def stored_bits(self) -> float:
        """Bits that a parameter takes on average, scales included; 16 where there are no parameters."""
        kept = sum(t.spec.nbytes for t in self.tensors if t.kind != "buffer")
        return round(8 * kept / self.parameters, 2) if self.parameters else 16.0

    @cached_property
    def largest_layer(self) -> tuple[str, int, int]:
        """(name, parameters, bytes) of the largest unit a loader places whole: a layer, or a module outside the layers."""
        units = {group.title.partition(" ")[0]: (group.parameters, group.nbytes) for group in self.groups}
        for tensor in self.outside:
            parameters, nbytes = units.get(tensor.spec.module, (0, 0))
            units[tensor.spec.module] = (parameters + tensor.parameters, nbytes + tensor.spec.nbytes)
        name = max(units, key=lambda unit: units[unit], default="")
        return name or "(root)", *units.get(name, (0, 0))


def understand(spec: ModelSpec) -> tuple[Model, tuple[str, ...]]:
    """The model behind a spec, and a warning for each thing about its tensors that is not known."""
    stored, warnings = stored_tensors(spec)
    roles = components(spec.tensors)
    ties = find_ties(spec, stored, roles)
    tensors = without_copies(stored, ties)
    return Model(spec, tensors, roles, ties, *fold_layers(tensors)), warnings
