"""The device a step is traced for: what its kernels and libraries allocate depends on these few facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphmem.errors import GraphmemError
from graphmem.timeline.events import CUDA_ROUNDING


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device. ``sms`` (streaming multiprocessors) sizes split reductions, ``capability`` selects kernels."""

    type: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] = (0, 0)
    sms: int = 0
    #: The PyTorch release whose libraries and kernels are meant; the model's code runs on the one installed.
    torch: tuple[int, int] = (2, 13)

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
