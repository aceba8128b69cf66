"""Blocks, the segments they tile, and the free ones sorted as the allocator searches them."""

from __future__ import annotations

from bisect import bisect_left, insort

#: A free block's key sorts by size, then by address: both in one integer. Addresses on NVIDIA GPUs have 49 bits.
_ADDRESS_BITS = 56
_ADDRESS = (1 << _ADDRESS_BITS) - 1


class Pool:
    """Free blocks of one stream, small or large, by (size, address). ``unmapped``: address space without memory, by address."""

    __slots__ = ("clock", "keys", "page", "small", "stream", "unmapped")

    def __init__(self, small: bool, stream: int, page: int, clock: list[int]) -> None:
        self.small, self.stream = small, stream
        #: Searches so far, of all streams, as its one item: what garbage collection tells a cached block's age by.
        self.clock = clock
        #: Bytes an expandable segment of this pool grows by.
        self.page = page
        self.keys: list[int] = []
        self.unmapped: list[Block] = []

    def insert(self, block: Block) -> None:
        insort(self.keys, block.size << _ADDRESS_BITS | block.address)
        block.cached_at = self.clock[0]

    def insert_unmapped(self, block: Block) -> None:
        """Address space by address."""
        insort(self.unmapped, block, key=lambda other: other.address)

    def remove(self, block: Block) -> None:
        del self.keys[bisect_left(self.keys, block.size << _ADDRESS_BITS | block.address)]

    def at_least(self, size: int) -> int:
        """Index of the smallest free block of ``size`` or more, at the lowest address."""
        return bisect_left(self.keys, size << _ADDRESS_BITS)

    def size(self, index: int) -> int:
        return self.keys[index] >> _ADDRESS_BITS

    def address(self, index: int) -> int:
        return self.keys[index] & _ADDRESS

    def addresses(self) -> list[int]:
        """Of all free blocks, smallest first."""
        return [key & _ADDRESS for key in self.keys]

    @property
    def largest(self) -> int:
        """Size of the largest free block."""
        return self.keys[-1] >> _ADDRESS_BITS if self.keys else 0


class Block:
    """A part of a segment: in use, free, or (``mapped`` False) address space without memory. Its neighbours are ``prev`` and ``next``."""

    __slots__ = (
        "address",
        "allocated",
        "cached_at",
        "expandable",
        "mapped",
        "next",
        "pool",
        "prev",
        "requested",
        "size",
        "waiting",
    )

    def __init__(self, address: int, size: int, pool: Pool, expandable: bool = False) -> None:
        self.address, self.size, self.pool, self.expandable = address, size, pool, expandable
        #: Bytes that were asked for.
        self.requested = 0
        self.allocated = False
        #: Freed, but still in use by another stream.
        self.waiting = False
        self.mapped = True
        self.prev: Block | None = None
        self.next: Block | None = None
        self.cached_at = 0

    @property
    def free(self) -> bool:
        return not (self.allocated or self.waiting)

    @property
    def is_split(self) -> bool:
        return self.prev is not None or self.next is not None

    def link(self, before: Block | None, after: Block | None) -> None:
        """Take a place between two neighbours."""
        self.prev, self.next = before, after
        if before is not None:
            before.next = self
        if after is not None:
            after.prev = self
