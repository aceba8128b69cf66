"""What the allocator holds: blocks by address, the free ones by pool, and the bytes of each sort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from graphmem.timeline.allocator.blocks import Block, Pool
from graphmem.timeline.allocator.sizes import SMALL_SEGMENT


class Heap:
    """Segments tiled by blocks. All sizes are bytes; *active* is allocated or still used by another stream."""

    def __init__(self, large_segment_size: int) -> None:
        self.allocated = self.active = self.requested = self.reserved = self.inactive_split = 0
        self._large_segment_size = large_segment_size
        self._pools: dict[tuple[bool, int], Pool] = {}
        self._clocks: dict[bool, list[int]] = {True: [0], False: [0]}
        self._blocks: dict[int, Block] = {}
        #: The end of the address space known so far of each pool's expandable segment that was adopted.
        self._tails: dict[tuple[bool, int], int] = {}

    def pool(self, small: bool, stream: int) -> Pool:
        """The free blocks of a stream."""
        key = (small, stream)
        if key not in self._pools:
            page = SMALL_SEGMENT if small else self._large_segment_size
            self._pools[key] = Pool(small, stream, page, self._clocks[small])
        return self._pools[key]

    def pools(self, small: bool) -> list[Pool]:
        """Those of all streams, in the order the allocator goes through them."""
        return [self._pools[key] for key in sorted(self._pools) if key[0] is small]

    def put(self, block: Block) -> None:
        """A new block is at its address."""
        self._blocks[block.address] = block

    def gone(self, block: Block) -> None:
        """A block is no more."""
        del self._blocks[block.address]

    def free_block(self, pool: Pool, index: int) -> Block:
        """The free block at a place of a pool."""
        return self._blocks[pool.address(index)]

    def free_blocks(self, pool: Pool) -> list[Block]:
        """All of a pool, smallest first."""
        return [self._blocks[address] for address in pool.addresses()]

    def merged(self, block: Block, other: Block | None) -> int:
        """Join a free neighbour into ``block``; the bytes it had, 0 if it is not free."""
        if other is None or other.allocated or other.waiting or other.mapped is not block.mapped:
            return 0
        if other.mapped:
            other.pool.remove(other)
        else:
            other.pool.unmapped.remove(other)
        blocks = self._blocks
        if block.prev is other:
            del blocks[block.address]
            block.address = other.address
            blocks[block.address] = block
            block.prev = other.prev
            if block.prev is not None:
                block.prev.next = block
        else:
            del blocks[other.address]
            block.next = other.next
            if block.next is not None:
                block.next.prev = block
        block.size += other.size
        return other.size

    def adopt(
        self,
        address: int,
        size: int,
        stream: int,
        small: bool,
        used: Iterable[tuple[int, int, int]],
        space: int = 0,
        before_it: int = 0,
    ) -> None:
        """A segment that was there before: ``used`` has (address, bytes, bytes asked for) of its blocks, oldest address first.

        ``space`` and ``before_it``: of an expandable segment, the address space up to its next mapped part, and before its first.
        """
        pool, position, last = self.pool(small, stream), address, None
        end, expandable = address + size, space > 0
        parts = [(begin, nbytes, asked) for begin, nbytes, asked in used]
        before = self._blocks.get(self._tails.pop((small, stream), -1)) if expandable else None
        if expandable and before is None and before_it:
            before = Block(address - before_it, before_it, pool, expandable=True)
            before.mapped = False
            self.put(before)
            pool.insert_unmapped(before)
        for begin, nbytes, asked in [*parts, (end, 0, -1)]:
            for start, length, is_used in ((position, begin - position, False), (begin, nbytes, True)):
                if not length:
                    continue
                block = Block(start, length, pool, expandable)
                block.link(last or before, None)
                self._blocks[start] = last = block
                if is_used:
                    block.allocated, block.requested = True, asked
                    self.allocated += length
                    self.active += length
                    self.requested += asked
            position = begin + nbytes
        if expandable and last is not None:
            rest = Block(end, space, pool, expandable=True)
            rest.mapped = False
            rest.link(last, None)
            self._blocks[end] = rest
            pool.insert_unmapped(rest)
            self._tails[small, stream] = end
        self.reserved += size
        block = self._blocks[address]
        while block is not None and block.address < end and block.mapped:
            if block.free:
                pool.insert(block)
                if block.is_split and not expandable:
                    self.inactive_split += block.size
            block = block.next  # type: ignore[assignment]

    def blocks(self) -> Iterator[Block]:
        """Every mapped block, by address."""
        return (block for _, block in sorted(self._blocks.items()) if block.mapped)

    @property
    def largest_free(self) -> int:
        """Bytes of the largest free block: what the next request can have without the device."""
        return max((pool.largest for pool in self._pools.values()), default=0)

    @property
    def total_free(self) -> int:
        """Bytes reserved and neither allocated nor waiting."""
        return self.reserved - self.active
