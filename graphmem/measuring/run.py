"""A module and a workload → a Measurement, on the CUDA device if there is one."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from graphmem.errors import GraphmemError
from graphmem.measuring import cpu, cuda
from graphmem.measuring.measurement import Measurement
from graphmem.measuring.predict import predicted
from graphmem.tracing.device import CPU, Device
from graphmem.tracing.failure import first_line
from graphmem.tracing.run import trace_module
from graphmem.tracing.step import described
from graphmem.workload import Workload


def measured(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], workload: Workload, device: str | None,
    name: str, target: str, choices: Mapping[str, Any], inputs: tuple[Any, ...],
) -> Measurement:  # fmt: skip
    """Predict, run for real, compare. ``choices`` and ``inputs``: what a row says the workload was.

    Raises:
        GraphmemError: no such device, or the real run failed otherwise than for want of memory.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cuda", "cpu"):
        raise GraphmemError(f"device {device!r}: measure on cuda or cpu")
    if device == "cpu" and workload.alloc_conf:
        raise GraphmemError(
            f'alloc-conf "{workload.alloc_conf}": is about CUDA\'s caching allocator; this is measured on the CPU'
        )
    if device == "cuda":
        workload = replace(workload, alloc_conf=workload.alloc_conf or _settings_in_force())
    on = CPU if device == "cpu" else cuda.this_device()
    trace = trace_module(module, args, kwargs, workload, on, name)
    try:
        real = (cpu if device == "cpu" else cuda).measured(module, args, kwargs, workload)
    except GraphmemError:
        raise
    except Exception as error:
        raise GraphmemError(
            f"{name}: the real run failed ({first_line(error)}); its prediction stands alone"
        ) from error
    arguments = {key: value for key, value in choices.items() if isinstance(value, str | int | float | bool)}
    if workload.alloc_conf:
        arguments["alloc_conf"] = workload.alloc_conf
    notes = [f"{key}: {value}" for key, value in trace.settings.items()]
    notes += [f"assumed: {what}; first at {where}" for what, where in trace.assumptions.items()]
    return Measurement(
        target, arguments, _written(inputs), tuple(notes), _facts(on), _versions(), real, predicted(trace)
    )


def _written(inputs: tuple[Any, ...]) -> tuple[str, ...]:
    """Tensors as ``--input`` writes them: ``int64[1,2048]``, by keyword ``mask=bool[1,2048]``; what is no tensor is left out."""
    named = [("", value) for value in inputs if not isinstance(value, dict)]
    named += [(f"{key}=", value) for group in inputs if isinstance(group, dict) for key, value in group.items()]
    return tuple(f"{name}{described(value)}" for name, value in named if isinstance(value, torch.Tensor))


def _settings_in_force() -> str:
    """What the environment tells PyTorch's allocator."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _facts(device: Device) -> dict[str, Any]:
    if device.type == "cpu":
        return {"type": "cpu", "name": f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"}
    return {
        "type": "cuda", "name": device.name, "capability": list(device.capability), "sms": device.sms, "memory": device.memory,
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "python": platform.python_version()}
    for library in ("transformers", "graphmem"):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
