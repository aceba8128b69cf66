"""What PyTorch says when it runs out of memory, with its numbers. Source: c10/cuda/CUDACachingAllocator.cpp, ``malloc``."""

from __future__ import annotations

from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.simulate import OutOfMemory
from graphmem.units import GIB, KIB, MIB


def explained(died: OutOfMemory, total: int, context: int, conf: AllocConf, torch: tuple[int, int]) -> str:
    """The message of ``torch.OutOfMemoryError`` on a device of ``total`` bytes that this process alone uses."""
    free = max(total - context - died.reserved, 0)
    allowed = f"{_size(int(conf.memory_fraction * total))} allowed; " if conf.memory_fraction is not None else ""
    variable = "PYTORCH_ALLOC_CONF" if torch >= (2, 9) else "PYTORCH_CUDA_ALLOC_CONF"
    return (
        f"CUDA out of memory. Tried to allocate {_size(died.tried)}. GPU 0 has a total capacity of {_size(total)} of which "
        f"{_size(free)} is free. Including non-PyTorch memory, this process has {_size(context + died.reserved)} memory in use. "
        f"{allowed}Of the allocated memory {_size(died.allocated)} is allocated by PyTorch, and "
        f"{_size(died.reserved - died.allocated)} is reserved by PyTorch but unallocated. If reserved but unallocated memory is "
        f"large try setting {variable}=expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  "
        "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
    )


def _size(nbytes: int) -> str:
    """Bytes as PyTorch prints them in this message (``format_size``)."""
    if nbytes <= KIB:
        return f"{nbytes} bytes"
    for unit, size, last in (("KiB", KIB, MIB), ("MiB", MIB, GIB)):
        if nbytes <= last:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes / GIB:.2f} GiB"
