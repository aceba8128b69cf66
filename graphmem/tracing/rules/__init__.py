"""The rules graphmem ships with. Every file of this package registers its own when the package is imported."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from graphmem.tracing.rules.registry import REGISTRY, OpCall, Registry, Rule, Scratch, rule

for _file in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")

__all__ = ["REGISTRY", "OpCall", "Registry", "Rule", "Scratch", "rule"]
