"""What a block is, as far as the stack of its allocation tells."""

from __future__ import annotations

from graphmem.snapshots.snapshot import Frame
from graphmem.timeline.events import KINDS

UNKNOWN = "unknown"
#: (part of a file's name, function names or None for any, kind), innermost frame first. Sources: torch/nn/modules/module.py
#: (``_apply``), torch/optim, aten/src/ATen/cuda/CublasHandlePool.cpp, torch/csrc/distributed.
_RULES: tuple[tuple[str, tuple[str, ...] | None, str], ...] = (
    ("torch/nn/modules/module.py", ("_apply", "convert"), "parameter"),
    ("torch/optim/", None, "optimizer"),
    ("torch/distributed/", None, "communication"),
)
_WORKSPACES = ("CUDABlasHandle", "CUDABlasLtWorkspace", "parseChosenWorkspaceSize", "cublasLt")


def kind_of(frames: tuple[Frame, ...]) -> str:
    """A kind, or ``unknown``."""
    for frame in frames:
        word = frame.name.partition(" ")[0]
        if not frame.filename and word in KINDS:  # written by graphmem
            return word
        if any(name in frame.name for name in _WORKSPACES):
            return "workspace"
        file = frame.filename.replace("\\", "/")
        for part, names, kind in _RULES:
            if part in file and (names is None or frame.name in names):
                return kind
    return UNKNOWN


def place_of(frames: tuple[Frame, ...]) -> str:
    """The innermost line of the user's Python: outside torch and C++. Empty where no stack was recorded."""
    python = [frame for frame in frames if frame.filename.endswith(".py")]
    theirs = [frame for frame in python if "/torch/" not in frame.filename.replace("\\", "/")]
    if theirs or python:
        frame = (theirs or python)[0]
        return f"{frame.filename.replace(chr(92), '/').rpartition('/')[2]}:{frame.line} {frame.name}"
    return next((frame.name for frame in frames if frame.name), "")
