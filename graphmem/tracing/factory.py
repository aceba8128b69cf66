"""``package.module:factory`` → the module it makes, and ``int64[1,2048]`` → the inputs it is called with."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
from typing import Any

import torch

from graphmem.errors import GraphmemError, TargetError
from graphmem.tracing.failure import first_line

_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")
_INPUT = re.compile(r"^(?:(?P<name>[A-Za-z_]\w*)=)?(?P<dtype>[A-Za-z]\w*)\[(?P<shape>[^\]]*)\]$")
#: Elements beyond which an input is a slip of the keyboard: 2^44 of them are 64 TiB in float32.
MOST_ELEMENTS = 2**44


def is_factory(target: str) -> bool:
    """Whether a target names Python code rather than a checkpoint."""
    return bool(_FACTORY.match(target)) and not os.path.exists(target)


def module_from(target: str) -> torch.nn.Module:
    """Import and call the factory, on the meta device if it can be built there.

    Raises:
        TargetError: it does not import, is not there, is not callable, fails, or returns no module.
    """
    path, _, name = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(path)
    except Exception as error:
        raise TargetError(
            f"{target}: cannot import {path} ({first_line(error)}); run where `python -c 'import {path}'` works"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise TargetError(
                f"{target}: {path} has no {name!r}; name a class or function that returns a torch.nn.Module"
            )
        found = getattr(found, part)
    if isinstance(found, torch.nn.Module):
        return found
    if not callable(found):
        raise TargetError(
            f"{target}: {name} is a {type(found).__name__}, not callable; name a class or function that returns a torch.nn.Module"
        )
    module = _called(found, target)
    if not isinstance(module, torch.nn.Module):
        raise TargetError(f"{target}: returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def _called(factory: Any, target: str) -> Any:
    try:
        with torch.device("meta"):
            return factory()
    except Exception:
        pass  # code that reads its own tensors while it builds needs real ones
    try:
        return factory()
    except Exception as error:
        raise TargetError(f"{target}: failed when called without arguments ({first_line(error)})") from error


def parse_inputs(texts: list[str]) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """``["int64[1,2048]", "mask=bool[1,2048]"]`` → positional and keyword inputs, on meta but for integers, which are zeros.

    Raises:
        GraphmemError: not of that form, an unknown dtype, or a size that is no positive number or absurd.
    """
    args: list[torch.Tensor] = []
    kwargs: dict[str, torch.Tensor] = {}
    for text in texts:
        match = _INPUT.match(text.replace(" ", ""))
        if match is None:
            raise GraphmemError(f"--input {text!r}: write dtype[sizes], such as int64[1,2048] or mask=bool[1,2048]")
        tensor = _input(text, match["dtype"], match["shape"])
        if match["name"]:
            kwargs[match["name"]] = tensor
        else:
            args.append(tensor)
    return tuple(args), kwargs


def _input(text: str, dtype_name: str, sizes: str) -> torch.Tensor:
    dtype = getattr(torch, dtype_name, None)
    if not isinstance(dtype, torch.dtype):
        raise GraphmemError(
            f"--input {text!r}: {dtype_name!r} is no dtype of torch; use float32, bfloat16, int64, bool, …"
        )
    try:
        shape = [int(size) for size in sizes.split(",") if size]
    except ValueError:
        raise GraphmemError(f"--input {text!r}: sizes are whole numbers, such as {dtype_name}[1,2048]") from None
    if any(size < 1 for size in shape):
        raise GraphmemError(f"--input {text!r}: sizes must be 1 or more")
    if math.prod(shape) > MOST_ELEMENTS:
        raise GraphmemError(
            f"--input {text!r}: {math.prod(shape):,} elements are more than any machine holds; check the sizes"
        )
    small_integers = not (dtype.is_floating_point or dtype.is_complex) and math.prod(shape) <= 2**22
    return torch.zeros(shape, dtype=dtype, device="cpu" if small_integers else "meta")
