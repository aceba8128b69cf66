"""One measured run beside its prediction: what is printed, and the row that a contributor sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from graphmem.measuring.sequences import common_length, common_prefix

#: Of a row in ``fixtures/measurements``. Changes are additive within a version.
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Run:
    """What a device did, or will do. Bytes; ``events`` are allocations (+) and requested releases (−) in order, from after ``start``."""

    start: int
    events: tuple[int, ...]
    #: Where each event came from, innermost first, in words.
    places: tuple[str, ...]
    peak: int
    #: ``torch.cuda.max_memory_reserved``; None on the CPU, which reserves nothing.
    reserved: int | None = None
    #: Least and most in use on the device, of whatever process; measured, both are the figure at the end. None: on the CPU, or not known.
    driver: tuple[int, int] | None = None
    #: PyTorch's message, where memory ran out.
    out_of_memory: str = ""


@dataclass(frozen=True)
class Difference:
    """The first event that is not the same. Bytes; 0: there is none any more."""

    index: int
    real: int
    real_place: str
    predicted: int
    predicted_place: str


@dataclass(frozen=True)
class Measurement:
    """A run and its prediction. ``arguments`` are what `graphmem.trace` was called with, ``inputs`` those of a factory as ``--input`` has
    them; ``device`` and ``versions`` say on what; ``notes`` are the prediction's: its settings, and what it assumed.
    """

    target: str
    arguments: Mapping[str, Any]
    inputs: tuple[str, ...]
    notes: tuple[str, ...]
    device: Mapping[str, Any]
    versions: Mapping[str, str]
    real: Run
    predicted: Run

    @property
    def matched(self) -> int:
        """Events that are equal in order: the longest common subsequence."""
        return common_length(self.real.events, self.predicted.events)

    @property
    def first_difference(self) -> Difference | None:
        """Where the two part."""
        return difference(self.real.events, self.real.places, self.predicted.events, self.predicted.places)

    def row(self) -> dict[str, Any]:
        """For ``fixtures/measurements``: everything but the predicted events, which each version makes anew."""
        real = asdict(self.real)
        del real["places"]
        predicted = asdict(self.predicted)
        del predicted["places"], predicted["events"]
        found = self.first_difference
        return {
            "schema_version": SCHEMA_VERSION, "target": self.target, "arguments": dict(self.arguments), "inputs": list(self.inputs), "device": dict(self.device),
            "versions": dict(self.versions), "real": real, "predicted": predicted, "matched": self.matched,
            "first_difference": None if found is None else asdict(found),
        }  # fmt: skip


def difference(
    real: Sequence[int], real_places: Sequence[str], predicted: Sequence[int], predicted_places: Sequence[str]
) -> Difference | None:
    """The first event in which two sequences differ."""
    at = common_prefix(real, predicted)
    if at == len(real) == len(predicted):
        return None

    def seen(events: Sequence[int], places: Sequence[str]) -> tuple[int, str]:
        return (events[at], places[at] if at < len(places) else "") if at < len(events) else (0, "")

    return Difference(at, *seen(real, real_places), *seen(predicted, predicted_places))


def peak_of(start: int, events: Sequence[int]) -> int:
    """Bytes at the highest point."""
    return max(accumulate(events, initial=start))
