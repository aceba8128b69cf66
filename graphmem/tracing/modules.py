"""Which module is running: a stack kept by global forward hooks, which are removed when the step is over."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class ModuleStack:
    """The paths of the modules whose ``forward`` is being run, outermost first."""

    def __init__(self, module: torch.nn.Module | None = None) -> None:
        self._paths = {id(child): path for path, child in module.named_modules()} if module is not None else {}
        #: The classes of all modules, for whoever looks after what they keep.
        self.classes = {type(child) for child in module.modules()} if module is not None else set()
        self._running: list[tuple[int, str]] = []
        self.current = ""
        #: How deep it is; 0 outside every forward, as in most of backward.
        self.depth = 0
        #: Of the last exception out of a forward: its id, how deep the innermost module that it left was, and that module's path.
        #: Not itself: its traceback would keep every local of that forward alive (checkpointing stops a recomputation so).
        self.failed: tuple[int, int, str] | None = None

    def path_of(self, module: torch.nn.Module) -> str:
        """The path of a module of the traced one; a stranger (a loss, say) counts to the module that runs it."""
        return self._paths.get(id(module), self.current)

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        path = self.path_of(module)
        self._running.append((id(module), path))
        self.current = path
        self.depth += 1

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and (self.failed is None or self.failed[0] != id(error) or self.failed[1] <= self.depth):
            self.failed = (id(error), self.depth, self.current)
        del error
        while self._running and self._running.pop()[0] != id(module):
            pass
        self.depth = len(self._running)
        self.current = self._running[-1][1] if self._running else ""

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow every module's forward, for as long as this lasts; also out of those that raise (checkpointing stops so)."""
        handles = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
