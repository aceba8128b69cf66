"""What a process holds on a GPU beside torch's own memory: the CUDA context, with the kernels loaded into it.

Calibrated, never computed: it depends on the driver, the CUDA release and which kernels were used. The ranges in ``context.json`` come from
out-of-memory messages of single-GPU processes, which say what the process has in use, what torch allocated and what it reserved beyond that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from graphmem.hardware.gpus import Gpu
from graphmem.units import MIB


@dataclass(frozen=True, slots=True)
class Context:
    """The size of a CUDA context: a range in bytes, and the number of messages of this GPU behind it (0: the range is of others)."""

    low: int
    median: int
    high: int
    samples: int
    source: str


def context_of(gpu: Gpu) -> Context:
    """What was measured on ``gpu``, or on every GPU where it has no row. One message alone sets the median, but is no range."""
    table = _table()
    everything = table["all"]
    row = next((row for row in table["rows"] if gpu.name in row["gpus"]), None)
    if row is None:
        return _context(
            everything, everything, 0, f"{table['source']}; all {everything['n']} of NVIDIA GPUs, none of this one"
        )
    source = f"{table['source']}; {row['n']} of {row['of']}"
    if row["n"] == 1:
        return _context(everything, row, 1, f"{source}, the range of all {everything['n']}")
    return _context(row, row, row["n"], source)


def overall_context() -> Context:
    """What was measured on every GPU together, for one that is not named."""
    everything = _table()["all"]
    source = f"{_table()['source']}; all {everything['n']} of NVIDIA GPUs"
    return _context(everything, everything, everything["n"], source)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((files("graphmem.hardware") / "context.json").read_text("utf-8"))
    return table


def _context(ends: dict[str, float], middle: dict[str, float], samples: int, source: str) -> Context:
    low, median, high = (round(mib * MIB) for mib in (ends["min_mib"], middle["median_mib"], ends["max_mib"]))
    return Context(low, median, high, samples, source)
