"""A Trace in a file: gzipped JSON, a format of its own version, written all at once."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from graphmem.errors import GraphmemError
from graphmem.timeline.events import Block, Event, Op, Value, ValueRef
from graphmem.tracing.device import Device
from graphmem.tracing.trace import Trace

_FORMAT, _VERSION = "graphmem trace", 1


def save(trace: Trace, path: Path) -> None:
    """Write the trace.

    Raises:
        GraphmemError: the file cannot be written.
    """
    text = json.dumps(
        {
            "format": _FORMAT, "version": _VERSION, "device": asdict(trace.device), "target": trace.target,
            "settings": dict(trace.settings), "modules": dict(trace.modules), "assumptions": dict(trace.assumptions), "placeholders": dict(trace.placeholders),
            "values": [_row(value) for value in trace.values], "blocks": [_row(block) for block in trace.blocks],
            "ops": [[_plain(item) for item in _row(op)] for op in trace.ops], "events": trace.events,
            "alloc_conf": trace.alloc_conf, "cache_emptied": trace.cache_emptied,
        },
        separators=(",", ":"),
    )  # fmt: skip
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(handle, "wb") as file:
            file.write(gzip.compress(text.encode(), mtime=0))
        os.replace(temporary, path)
    except OSError as error:
        raise GraphmemError(f"{path}: cannot be written ({error.strerror})") from error


def load(path: Path) -> Trace:
    """Read a trace that `save` wrote. Nothing in the file is executed.

    Raises:
        GraphmemError: there is no such file, or it is no trace of this version.
    """
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
    except OSError as error:
        raise GraphmemError(f"{path}: {error.strerror or 'is no trace that graphmem saved'}") from error
    except (ValueError, EOFError) as error:
        raise GraphmemError(f"{path}: is no trace that graphmem saved") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT or found.get("version") != _VERSION:
        raise GraphmemError(f"{path}: is no trace of version {_VERSION}; trace again with this version of graphmem")
    device = Device(**{key: _tuples(value) for key, value in found["device"].items()})
    return Trace(
        device, found["target"], found["settings"], tuple(Op(*map(_back, row)) for row in found["ops"]),
        tuple(Value(*map(_tuples, row)) for row in found["values"]), tuple(Block(*map(_tuples, row)) for row in found["blocks"]),
        tuple(Event(*row) for row in found["events"]), found["placeholders"], found["modules"], found["assumptions"],
        found.get("alloc_conf", ""), tuple(found.get("cache_emptied", ())),
    )  # fmt: skip


def _row(item: Any) -> list[Any]:
    return [getattr(item, field.name) for field in fields(item)]


def _plain(value: Any) -> Any:
    """An argument of an operation as JSON: values by index, torch's dtypes and devices by name."""
    if isinstance(value, ValueRef):
        return {"value": value.index}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _plain(item) for key, item in value.items()}}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return {"torch": str(value)}


def _back(value: Any) -> Any:
    if isinstance(value, list):
        return [_back(item) for item in value]
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "value":
            return ValueRef(inner)
        if kind == "tuple":
            return tuple(_back(item) for item in inner)
        return {key: _back(item) for key, item in inner.items()} if kind == "dict" else _torch_constant(inner)
    return value


def _torch_constant(name: str) -> Any:
    """``torch.float32`` → the dtype, layout or memory format of that name; else a device."""
    import torch

    constant = getattr(torch, name.removeprefix("torch."), None)
    return torch.device(name) if constant is None else constant


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
