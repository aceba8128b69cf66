"""The device below the allocator: where ``cudaMalloc`` and ``cuMemMap`` take memory from, and when there is no more."""

from __future__ import annotations

from typing import Protocol

from graphmem.units import MIB

#: (action, address, bytes, stream), in the words of PyTorch's memory history: segment_alloc, segment_free, segment_map, segment_unmap.
SegmentEvent = tuple[str, int, int, int]


class Driver(Protocol):
    """What the allocator asks of the device. Bytes and addresses are ints."""

    #: Bytes of the device; None where nothing limits it.
    total: int | None

    def malloc(self, size: int) -> int | None:
        """Address of a new segment; None: out of memory."""

    def map(self, address: int, size: int) -> bool:
        """Put memory behind address space; False: out of memory."""

    def unmap(self, address: int, size: int) -> None:
        """Take it back."""

    def free(self, address: int, size: int) -> None:
        """Give a segment back."""

    def reserve(self, pool_page: int) -> tuple[int, int]:
        """Address and size of address space for an expandable segment."""


#: Where simulated addresses begin.
_FIRST_ADDRESS, _FIRST_VIRTUAL = 0x7F00_0000_0000, 0x3_0000_0000
_VIRTUAL_STRIDE = 1 << 44


class DeviceMemory:
    """``total`` bytes of which ``taken`` are the CUDA context's and other processes'. Addresses rise, and freed ones are used again."""

    def __init__(self, total: int | None = None, taken: int = 0) -> None:
        self.total, self.taken, self.used = total, taken, 0
        self._next, self._virtual = _FIRST_ADDRESS, _FIRST_VIRTUAL
        self._given_back: dict[int, list[int]] = {}

    @property
    def available(self) -> int | None:
        """Bytes that can still be had; None: no limit."""
        return None if self.total is None else max(self.total - self.taken - self.used, 0)

    def malloc(self, size: int) -> int | None:
        if not self.map(0, size):
            return None
        again = self._given_back.get(size)
        if again:
            return again.pop()
        address = self._next
        self._next += -(-size // (2 * MIB)) * 2 * MIB
        return address

    def map(self, address: int, size: int) -> bool:
        if self.total is not None and self.taken + self.used + size > self.total:
            return False
        self.used += size
        return True

    def unmap(self, address: int, size: int) -> None:
        self.used -= size

    def free(self, address: int, size: int) -> None:
        self.used -= size
        self._given_back.setdefault(size, []).append(address)

    def reserve(self, pool_page: int) -> tuple[int, int]:
        """1 1/8 of the device's memory, as PyTorch takes; of a device without limit 16 TiB."""
        self._virtual += _VIRTUAL_STRIDE
        space = self.total + self.total // 8 if self.total is not None else _VIRTUAL_STRIDE
        return self._virtual, -(-space // pool_page) * pool_page
