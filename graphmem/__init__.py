"""graphmem: how much memory a PyTorch model needs, where it goes, and what would make it fit.

Names are imported when first used, so that ``import graphmem`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphmem.api import inspect as inspect
    from graphmem.errors import GraphmemError as GraphmemError
    from graphmem.report import Figure as Figure
    from graphmem.report import Report as Report
    from graphmem.report import Section as Section
    from graphmem.report import Table as Table

__version__ = "0.1.0"

_HOMES = {
    "inspect": "graphmem.api",
    "GraphmemError": "graphmem.errors",
    "Figure": "graphmem.report",
    "Report": "graphmem.report",
    "Section": "graphmem.report",
    "Table": "graphmem.report",
}

__all__ = ["Figure", "GraphmemError", "Report", "Section", "Table", "__version__", "inspect"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'graphmem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
