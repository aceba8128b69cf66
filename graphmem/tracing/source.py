"""Which line of the user's Python an operation comes from: the innermost frame outside torch and graphmem."""

from __future__ import annotations

import os
from types import CodeType, FrameType

import torch

import graphmem

_INSIDE = tuple(os.path.dirname(os.path.abspath(module.__file__ or "")) + os.sep for module in (torch, graphmem))
_OPTIM = os.path.join(_INSIDE[0], "optim") + os.sep
#: The file that runs a step: whoever called graphmem is above it and no part of the step.
_LOOP = os.path.join(_INSIDE[1], "tracing", "loop.py")
#: (code, line number), rendered only when somebody asks.
Place = tuple[CodeType, int] | None


class SourceLines:
    """Finds the calling line quickly: whether a code object is the user's is decided once."""

    def __init__(self) -> None:
        self._theirs: dict[CodeType, bool] = {}

    def caller(self, frame: FrameType | None) -> Place:
        """The innermost frame that runs the user's code; of what graphmem runs itself, the optimizer's own frame or None."""
        theirs, optimizer = self._theirs, None
        while frame is not None:
            code = frame.f_code
            if code.co_filename == _LOOP:
                return optimizer
            found = theirs.get(code)
            if found is None:
                found = theirs[code] = not code.co_filename.startswith(_INSIDE) and code.co_filename[:1] != "<"
            if found:
                return code, frame.f_lineno or 0
            if optimizer is None and code.co_filename.startswith(_OPTIM):
                optimizer = code, frame.f_lineno or 0
            frame = frame.f_back
        return None


def raised_at(error: BaseException) -> Place:
    """The user's line that an exception came from, or passed last."""
    found: Place = None
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_INSIDE) and code.co_filename[:1] != "<":
            found = code, traceback.tb_lineno
        traceback = traceback.tb_next
    return found


def render(place: Place) -> str:
    """``modeling_llama.py:123``; empty for None."""
    return f"{os.path.basename(place[0].co_filename)}:{place[1]}" if place else ""
