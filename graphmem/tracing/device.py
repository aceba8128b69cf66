"""The device a step is traced for: what its kernels and libraries allocate depends on these few facts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.hardware.context import Context, context_of, overall_context
from graphmem.hardware.gpus import gpu_named
from graphmem.timeline.events import CUDA_ROUNDING
from graphmem.units import parse_bytes


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device. ``sms`` (streaming multiprocessors) sizes split reductions, ``capability`` selects kernels."""

    type: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] = (0, 0)
    sms: int = 0
    #: The PyTorch release whose libraries and kernels are meant; the model's code runs on the one installed.
    torch: tuple[int, int] = (2, 13)
    #: Bytes of the device, of which the CUDA context takes its part; None: no limit.
    memory: int | None = None
    #: The CUDA context's size on it in bytes, as others measured: least, median, most; None: not known.
    context: tuple[int, int, int] | None = None

    @property
    def context_size(self) -> int:
        """The CUDA context's median in bytes; 0 where it is not known."""
        return self.context[1] if self.context is not None else 0

    @property
    def rounding(self) -> int:
        """Bytes that every allocation is rounded up to a multiple of."""
        return CUDA_ROUNDING if self.type == "cuda" else 1


#: Capability and SM count: NVIDIA A100 and H100 architecture whitepapers.
A100 = Device("cuda", "A100", (8, 0), 108)
H100 = Device("cuda", "H100", (9, 0), 132)
CPU = Device("cpu", "CPU")

_BY_NAME = {"cuda": A100, "cpu": CPU, "a100": A100, "h100": H100}


def device_named(device: str | Device) -> Device:
    """``"cuda"`` (an A100), ``"cpu"``, or a `Device` as it is.

    Raises:
        GraphmemError: any other name.
    """
    if isinstance(device, Device):
        return device
    try:
        return _BY_NAME[str(device).lower()]
    except KeyError:
        raise GraphmemError(f"device {device!r}: graphmem traces for {', '.join(_BY_NAME)}") from None


def traced_for(device: str | Device | None, gpu: str | None, memory: int | str | None) -> Device:
    """The device of a trace: by kind of kernels (``device``), or a GPU of the table with its memory; ``memory`` bytes of it.

    Raises:
        GraphmemError: no such device or GPU, or choices that exclude each other.
    """
    if gpu is not None and device is not None:
        raise GraphmemError(f"device {device!r} and gpu {gpu!r} exclude each other; a gpu says its kernels too")
    found = device_named("cuda" if device is None else device) if gpu is None else _from_table(gpu)
    if found.type == "cuda" and found.context is None and not isinstance(device, Device):
        found = replace(found, context=_range(overall_context()))
    if memory is None:
        return found
    if isinstance(memory, str):
        try:
            memory = parse_bytes(memory)
        except ValueError as error:
            raise GraphmemError(f"memory {error}") from None
    if found.type != "cuda":
        raise GraphmemError(f"memory {memory:,}: is about a GPU; this is traced for {found.name}")
    if memory < 2**20:
        raise GraphmemError(f"memory {memory:,} bytes: no GPU has so little; write 24GiB")
    return replace(found, memory=memory)


def _from_table(gpu: str) -> Device:
    if not isinstance(gpu, str):
        raise GraphmemError(f"gpu {gpu!r}: name one, such as 'A100-80GB' or 'RTX 4090'")
    row = gpu_named(gpu)
    if row.vendor != "NVIDIA":
        raise UnsupportedError(
            f"gpu {row.name!r}: graphmem knows what CUDA's kernels and libraries allocate, not ROCm's"
        )
    sms = row.sms or (H100 if row.capability >= H100.capability else A100).sms
    return Device("cuda", row.name, row.capability, sms, memory=row.capacity, context=_range(context_of(row)))


def _range(context: Context) -> tuple[int, int, int]:
    return context.low, context.median, context.high
