"""Names that people write for torch's dtypes, and its release."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.errors import GraphmemError

_SHORT = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def dtype_named(option: str, dtype: Any) -> str | None:
    """torch's name of a floating-point dtype: ``torch.bfloat16``, ``"bfloat16"`` and ``"bf16"`` are ``"bfloat16"``.

    Raises:
        GraphmemError: it is none.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    name = _SHORT.get(name, name)
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise GraphmemError(f"{option} {dtype}: is no floating-point dtype of torch; use float32, bfloat16 or float16")
    return name


def torch_release() -> tuple[int, int]:
    """Of the PyTorch that is installed: ``(2, 13)``."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
