"""graphmem: how much memory a PyTorch model needs, where it goes, and what would make it fit.

Names are imported when first used, so that ``import graphmem`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphmem.api import infer as infer
    from graphmem.api import inspect as inspect
    from graphmem.api import load_trace as load_trace
    from graphmem.api import measure as measure
    from graphmem.api import plan as plan
    from graphmem.api import show as show
    from graphmem.api import trace as trace
    from graphmem.api import train as train
    from graphmem.engines.estimate import Estimate as Estimate
    from graphmem.errors import GraphmemError as GraphmemError
    from graphmem.report import Figure as Figure
    from graphmem.report import Report as Report
    from graphmem.report import Section as Section
    from graphmem.report import Table as Table
    from graphmem.tracing.device import Device as Device
    from graphmem.tracing.formula import fit_formula as fit_formula
    from graphmem.tracing.rules import Scratch as Scratch
    from graphmem.tracing.rules import rule as rule
    from graphmem.tracing.trace import Trace as Trace
    from graphmem.training.run import TrainingRun as TrainingRun

__version__ = "0.1.0"

_HOMES = {
    "infer": "graphmem.api",
    "inspect": "graphmem.api",
    "load_trace": "graphmem.api",
    "measure": "graphmem.api",
    "plan": "graphmem.api",
    "show": "graphmem.api",
    "trace": "graphmem.api",
    "train": "graphmem.api",
    "Estimate": "graphmem.engines.estimate",
    "GraphmemError": "graphmem.errors",
    "Figure": "graphmem.report",
    "Report": "graphmem.report",
    "Section": "graphmem.report",
    "Table": "graphmem.report",
    "Device": "graphmem.tracing.device",
    "fit_formula": "graphmem.tracing.formula",
    "rule": "graphmem.tracing.rules",
    "Scratch": "graphmem.tracing.rules",
    "Trace": "graphmem.tracing.trace",
    "TrainingRun": "graphmem.training.run",
}

__all__ = [
    "Device", "Estimate", "Figure", "GraphmemError", "Report", "Scratch", "Section", "Table", "Trace", "TrainingRun", "__version__", "fit_formula", "infer", "inspect",
    "load_trace", "measure", "plan", "rule", "show", "trace", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'graphmem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
