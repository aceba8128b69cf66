"""The GPU table: what each has and how we know, and finding a row by what people call it.

The figures are in ``gpus.json``, each with its source. Two totals are kept apart: nvidia-smi's includes what the driver reserves for itself,
torch's (``torch.cuda.get_device_properties(0).total_memory``, "total capacity" in out-of-memory messages) is what can be used.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.units import GIB, MIB


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as torch sees it: of a card with several, one of them. None: no figure with a source was found."""

    name: str
    #: What nvidia-smi prints as total, in bytes.
    nvidia_smi_bytes: int | None
    #: The least and the most bytes torch was seen to call total: the driver decides. Read from GiB with two decimals, so ± 5 MiB.
    torch_total: tuple[int, int] | None
    #: What ``torch.cuda.get_device_capability`` answers. ROCm builds answer too, from the gfx version: see ``vendor``.
    capability: tuple[int, int]
    #: Streaming multiprocessors; compute units of an AMD GPU.
    sms: int | None
    #: Of its memory, bytes a second by its data sheet.
    bandwidth: int | None
    #: Where each figure that is not None comes from, by the names of these fields.
    sources: Mapping[str, str] = field(hash=False)
    note: str
    #: Other names it goes by; a name that several GPUs have is asked about.
    aliases: tuple[str, ...]
    #: The size it is sold with, in GB: part of its names, no measure.
    sold_gb: int

    @property
    def capacity(self) -> int:
        """Bytes torch can see at most, on the safe side; ``capacity_basis`` says which figure that is."""
        if self.torch_total is not None:
            return self.torch_total[0]
        if self.nvidia_smi_bytes is not None:
            return self.nvidia_smi_bytes
        raise UnsupportedError(f"gpu {self.name!r}: no total of its memory is known")

    @property
    def capacity_basis(self) -> str:
        """In words, what ``capacity`` is."""
        if self.torch_total is not None:
            return "the least total torch was seen to report"
        return "nvidia-smi's total: torch's own, 0 to 4 % less, is not known"

    @property
    def vendor(self) -> str:
        """``"NVIDIA"`` or ``"AMD"``: capabilities of the two do not compare."""
        return "AMD" if self.name.startswith("AMD ") else "NVIDIA"


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every GPU of the table."""
    rows = json.loads((files("graphmem.hardware") / "gpus.json").read_text("utf-8"))
    return tuple(_gpu(row) for row in rows)


def gpu_named(text: str) -> Gpu:
    """The GPU that ``text`` names: any case, spaces or dashes, with or without maker, series and size (``"h100"``, ``"A100-80GB"``, ``"4090"``).

    What ``torch.cuda.get_device_name`` and nvidia-smi print is understood too.

    Raises:
        GraphmemError: none or several have that name; the message says which come close.
    """
    found = _by_key().get(_key(text), ())
    if len(found) == 1:
        return found[0]
    close = [gpu.name for gpu in _close(_key(text))]
    if found:
        raise GraphmemError(f"gpu {text!r}: several have this name; say {_either(close)}")
    hint = f"did you mean {_either(close)}?" if close else "docs/hardware.md lists them"
    raise GraphmemError(f"gpu {text!r}: none of the {len(gpus())} in the table; {hint}")


def _gpu(row: dict[str, Any]) -> Gpu:
    smi, total, bandwidth = row["nvidia_smi_mib"], row["torch_total_gib"], row["bandwidth_gbps"]
    return Gpu(
        name=row["name"],
        nvidia_smi_bytes=None if smi is None else smi * MIB,
        torch_total=None if total is None else (int(total[0] * GIB), int(total[1] * GIB)),
        capability=(row["capability"][0], row["capability"][1]),
        sms=row["sms"],
        bandwidth=None if bandwidth is None else bandwidth * 10**9,
        sources=row["sources"],
        note=row["note"],
        aliases=tuple(row["aliases"]),
        sold_gb=row["sold_gb"],
    )


#: Words of a name that tell no two GPUs of the table apart.
_NOISE = re.compile(r"nvidia|geforce|tesla|quadro|amd|instinct|rtx|generation|[^a-z0-9]")
_SIZE = re.compile(r"(?<![a-z0-9])(\d+) ?gi?b?(?![a-z0-9])")


def _key(text: str) -> str:
    """A name without what people vary, its size last: ``"NVIDIA A100 80GB PCIe"`` → ``"a100pcie80gb"``."""
    lower = text.lower()
    return _NOISE.sub("", _SIZE.sub("", lower)) + "".join(f"{size}gb" for size in _SIZE.findall(lower))


def _keys(gpu: Gpu) -> set[str]:
    """The keys of its names; one that leaves the size out may be given with it."""
    keys = {_key(name) for name in (gpu.name, *gpu.aliases)}
    return keys | {f"{key}{gpu.sold_gb}gb" for key in keys if not key.endswith("gb")}


@cache
def _by_key() -> dict[str, tuple[Gpu, ...]]:
    table: dict[str, tuple[Gpu, ...]] = {}
    for gpu in gpus():
        for key in _keys(gpu):
            table[key] = (*table.get(key, ()), gpu)
    return table


def _close(key: str, most: int = 6) -> list[Gpu]:
    """GPUs whose names contain ``key``, or else are spelled much like it."""
    table = _by_key()
    keys = [other for other in table if key in other] if key else []
    keys = keys or difflib.get_close_matches(key, table, n=most)
    near = {gpu.name for other in keys for gpu in table[other]}
    return [gpu for gpu in gpus() if gpu.name in near][:most]


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
