"""Truth 7: rows that `graphmem measure --json` wrote, here or on a contributor's machine, against the code as it is now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graphmem
from graphmem.errors import GraphmemError
from graphmem.measuring.measurement import SCHEMA_VERSION
from graphmem.measuring.predict import predicted
from graphmem.measuring.sequences import common_length
from graphmem.tracing.device import CPU, Device
from graphmem.tracing.factory import parse_inputs

FOLDER = Path(__file__).parents[2] / "fixtures" / "measurements"


@dataclass(frozen=True)
class MeasurementRow:
    """Bytes; ``failure``: why it cannot be traced now, for one that names code of the contributor's."""

    name: str
    row: dict[str, Any]
    peak: int = 0
    reserved: int | None = None
    matched: int = 0
    failure: str = ""

    @property
    def events(self) -> int:
        return len(self.row["real"]["events"])

    @property
    def error(self) -> float:
        return self.peak / self.row["real"]["peak"] - 1


def device_of(row: dict[str, Any]) -> Device:
    """The device a row was measured on."""
    about = row["device"]
    if about["type"] == "cpu":
        return CPU
    major, minor = row["versions"]["torch"].split(".")[:2]
    capability = tuple(about["capability"])
    return Device("cuda", about["name"], capability, about["sms"], (int(major), int(minor)), about["memory"])


def measure(path: Path) -> MeasurementRow:
    """Predict a row's workload anew."""
    row = json.loads(path.read_text())
    if row["schema_version"] != SCHEMA_VERSION:
        return MeasurementRow(path.stem, row, failure=f"schema version {row['schema_version']}")
    arguments = {key: value for key, value in row["arguments"].items() if key not in ("trust_remote_code", "offline")}
    try:
        args, kwargs = parse_inputs(row.get("inputs", []))
        inputs = [*args, *([kwargs] if kwargs else [])]
        trace = graphmem.trace(row["target"], *inputs, device=device_of(row), offline=True, **arguments)
    except GraphmemError as error:
        return MeasurementRow(path.stem, row, failure=str(error))
    ours = predicted(trace)
    return MeasurementRow(path.stem, row, ours.peak, ours.reserved, common_length(row["real"]["events"], ours.events))


def rows() -> Iterator[MeasurementRow]:
    """Every contributed row."""
    for path in sorted(FOLDER.glob("*.json")):
        yield measure(path)
