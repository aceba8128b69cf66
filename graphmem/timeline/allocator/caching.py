"""The caching allocator: serves requests from free blocks, splits and merges them, and goes to the device when none fits.

Facts from c10/cuda/CUDACachingAllocator.cpp (``DeviceCachingAllocator``), whose words are used: a *segment* is what the device
gave, a *block* is a part of one, *active* is allocated or still used by another stream, *reserved* is the sum of segments,
*inactive split* is free memory in segments that are partly in use, which cannot be given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from graphmem.timeline.allocator.blocks import Block, Pool
from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.driver import DeviceMemory, Driver
from graphmem.timeline.allocator.sizes import SMALL_SEGMENT, SMALL_SIZE, round_size, segment_size
from graphmem.timeline.events import CUDA_ROUNDING

#: (action, address, bytes, stream), in the words of PyTorch's memory history: segment_alloc, segment_free, segment_map, segment_unmap.
SegmentEvent = tuple[str, int, int, int]


class OutOfMemoryError(Exception):
    """No block could be had, even after everything cached was given back. ``size``: bytes asked of the device last."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


def _unheard(event: SegmentEvent) -> None:
    return None


def _to_512(nbytes: int) -> int:
    """`round_size` without divisions, which is most of what an allocation costs here."""
    return (nbytes + CUDA_ROUNDING - 1) & -CUDA_ROUNDING or CUDA_ROUNDING


class CachingAllocator:
    """The state of one device's allocator. All sizes are bytes; ``on_segment`` hears of each segment that comes or goes."""

    def __init__(
        self,
        conf: AllocConf | None = None,
        driver: Driver | None = None,
        on_segment: Callable[[SegmentEvent], None] = _unheard,
    ) -> None:
        self.conf = conf or AllocConf()
        self.driver: Driver = driver or DeviceMemory()
        self.on_segment = on_segment
        self.allocated = self.active = self.requested = self.reserved = self.inactive_split = 0
        #: How often everything cached was given back because the device had no more (``num_alloc_retries``).
        self.retries = 0
        total = self.driver.total
        fraction = self.conf.memory_fraction
        self.allowed = int(fraction * total) if fraction is not None and total is not None else None
        self._collects = self.allowed is not None and self.conf.garbage_collection_threshold > 0
        divides = any(divisions > 1 for divisions in self.conf.roundup_power2_divisions)
        self._round: Callable[[int], int] = partial(round_size, conf=self.conf) if divides else _to_512
        self._pools: dict[tuple[bool, int], Pool] = {}
        self._blocks: dict[int, Block] = {}
        #: The end of the address space known so far of each pool's expandable segment that was adopted.
        self._tails: dict[tuple[bool, int], int] = {}

    # -- requests -------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int, stream: int = 0) -> Block:
        """A block for ``nbytes``.

        Raises:
            OutOfMemoryError: the device has no more, even after everything cached was given back.
        """
        size = self._round(nbytes)
        pool = self._pools.get((size <= SMALL_SIZE, stream)) or self.pool(size <= SMALL_SIZE, stream)
        block = self._cached(pool, size) or self._grown(pool, size)
        was_split = block.prev is not None or block.next is not None
        remaining = block.size - size
        if remaining and self._splits(pool, size, remaining):
            rest = Block(block.address + size, remaining, pool, block.expandable)
            rest.link(block, block.next)
            block.next, block.size = rest, size
            self._blocks[rest.address] = rest
            pool.insert(rest)
            if not block.expandable:
                self.inactive_split += -size if was_split else remaining
        elif was_split and not block.expandable:
            self.inactive_split -= block.size
        block.allocated, block.requested = True, nbytes
        self.allocated += block.size
        self.active += block.size
        self.requested += nbytes
        return block

    def free(self, block: Block, *, in_use_elsewhere: bool = False) -> None:
        """The last reference is gone. ``in_use_elsewhere``: another stream still uses it; `release` follows when it does not."""
        block.allocated = False
        self.allocated -= block.size
        if in_use_elsewhere:
            block.waiting = True
        else:
            self.release(block)

    def release(self, block: Block) -> None:
        """Make a freed block available again, merged with its free neighbours."""
        block.waiting = False
        pool, size = block.pool, block.size
        self.active -= size
        self.requested -= block.requested
        subsumed = self._merged(block, block.prev) + self._merged(block, block.next)
        pool.insert(block)
        if not block.expandable:
            self.inactive_split += (block.size if block.prev is not None or block.next is not None else 0) - subsumed

    def empty_cache(self) -> None:
        """Give back every segment that nothing is in, large ones first (``torch.cuda.empty_cache``)."""
        for block in [block for block in self.blocks() if block.waiting]:
            self.release(block)
        for small in (False, True):
            expandable: list[Block] = []
            for pool in [self._pools[key] for key in sorted(self._pools) if key[0] is small]:
                for address in pool.addresses():
                    block = self._blocks[address]
                    if block.expandable:
                        expandable.append(block)
                    elif not block.is_split:
                        self._give_back(block)
            for block in expandable:
                self._unmap(block)

    # -- finding a block ------------------------------------------------------------------------------------------

    def pool(self, small: bool, stream: int) -> Pool:
        """The free blocks of a stream."""
        key = (small, stream)
        if key not in self._pools:
            self._pools[key] = Pool(small, stream, SMALL_SEGMENT if small else self.conf.large_segment_size)
        return self._pools[key]

    def _cached(self, pool: Pool, size: int) -> Block | None:
        """The free block that fits best: the smallest, then the lowest address."""
        if self._collects:
            pool.lookups += 1
        index = pool.at_least(size)
        if index == len(pool.keys):
            return None
        block = self._blocks[pool.address(index)]
        if block.expandable:
            index = self._best_expandable(pool, index)
            block = self._blocks[pool.address(index)]
        limit = self.conf.max_split_size
        if limit is not None:
            if size < limit <= block.size:
                return None
            if size >= limit and block.size >= size + self.conf.max_non_split_rounding:
                return None
        del pool.keys[index]
        return block

    def _best_expandable(self, pool: Pool, index: int) -> int:
        """A block that can grow counts with what it can grow to, so that the end of a segment is taken last."""

        def reach(block: Block) -> int:
            return block.size + (block.next.size if block.next is not None and not block.next.mapped else 0)

        while index + 1 < len(pool.keys):
            here, further = (self._blocks[pool.address(i)] for i in (index, index + 1))
            if not here.expandable or reach(further) >= reach(here):
                break
            index += 1
        return index

    def _grown(self, pool: Pool, size: int) -> Block:
        """A block from the device, after giving back what is cached if need be."""
        if self._collects:
            self._collect()
        wanted = segment_size(size, self.conf)
        block = self._from_device(pool, size, wanted)
        if block is None and self._free_oversized(pool, size):
            block = self._from_device(pool, size, wanted)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._from_device(pool, size, wanted)
        if block is None:
            raise OutOfMemoryError(wanted)
        return block

    def _from_device(self, pool: Pool, size: int, wanted: int) -> Block | None:
        if self.allowed is not None and self.reserved + wanted > self.allowed:
            return None
        if self.conf.expandable_segments:
            return self._expanded(pool, size)
        address = self.driver.malloc(wanted)
        if address is None:
            return None
        self.reserved += wanted
        self._blocks[address] = block = Block(address, wanted, pool)
        self.on_segment(("segment_alloc", address, wanted, pool.stream))
        return block

    def _splits(self, pool: Pool, size: int, remaining: int) -> bool:
        if pool.small or self.conf.expandable_segments:
            return remaining >= CUDA_ROUNDING
        limit = self.conf.max_split_size
        return remaining > SMALL_SIZE and (limit is None or size < limit)

    # -- giving memory back ---------------------------------------------------------------------------------------

    def _merged(self, block: Block, other: Block | None) -> int:
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

    def _give_back(self, block: Block) -> None:
        self.on_segment(("segment_free", block.address, block.size, block.pool.stream))
        self.driver.free(block.address, block.size)
        self.reserved -= block.size
        block.pool.remove(block)
        del self._blocks[block.address]

    def _free_oversized(self, pool: Pool, size: int) -> bool:
        """With max_split_size: give back one cached block that is large enough, or the largest ones until they are."""
        limit = self.conf.max_split_size
        if limit is None:
            return False
        wanted = max(size, limit)
        index = pool.at_least(wanted)
        if index < len(pool.keys):
            self._give_back(self._blocks[pool.address(index)])
            return True
        released = 0
        while released < wanted and pool.keys and pool.largest >= limit:
            released += pool.largest
            self._give_back(self._blocks[pool.address(len(pool.keys) - 1)])
        return released >= wanted

    def _collect(self) -> None:
        """``garbage_collection_threshold``: give back unsplit cached blocks that were not used for longer than the average."""
        assert self.allowed is not None
        threshold = int(self.conf.garbage_collection_threshold * self.allowed)
        target, reclaimed = self.reserved - threshold, 0
        pools = [self._pools[key] for key in sorted(self._pools) if not key[0]]
        cached = [
            block for pool in pools for block in map(self._blocks.__getitem__, pool.addresses()) if not block.is_split
        ]
        while reclaimed < target and cached:
            ages = [block.pool.lookups - block.cached_at for block in cached]
            average = sum(ages)
            old: list[Block] = []
            kept: list[Block] = []
            count = len(cached)
            for block, age in zip(cached, ages, strict=True):
                (old if age * count >= average else kept).append(block)
            for block in old:
                reclaimed += block.size
                self._give_back(block)
            cached = kept if old else []

    # -- expandable segments --------------------------------------------------------------------------------------

    def _expanded(self, pool: Pool, size: int) -> Block | None:
        """Map memory behind the lowest address space with room for ``size``, free memory before it included."""
        block = self._room(pool, size)
        if not block.mapped:
            grown = self._map(block, min(block.size, size))
            if grown is None:
                return None
            block = grown
        while block.size < size:
            assert block.next is not None
            grown = self._map(block.next, min(size - block.size, block.next.size))
            if grown is None:
                return None
            block = grown
        pool.remove(block)
        return block

    def _room(self, pool: Pool, size: int) -> Block:
        for block in pool.unmapped:
            start = block.prev if block.prev is not None and block.prev.free else block
            reach, part = 0, start
            while part is not None and part.free and reach < size:
                reach += part.size
                part = part.next  # type: ignore[assignment]
            if reach >= size:
                return start
        address, space = self.driver.reserve(pool.page)
        block = Block(address, space, pool, expandable=True)
        block.mapped = False
        self._blocks[address] = block
        pool.unmapped.append(block)
        pool.unmapped.sort(key=lambda block: block.address)
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Back the beginning of an unmapped block with pages; the free block it then is part of."""
        pool = block.pool
        mapped = -(-size // pool.page) * pool.page
        if not self.driver.map(block.address, mapped):
            return None
        pool.unmapped.remove(block)
        block.mapped = True
        if mapped < block.size:
            rest = Block(block.address + mapped, block.size - mapped, pool, expandable=True)
            rest.mapped = False
            rest.link(block, block.next)
            block.next, block.size = rest, mapped
            self._blocks[rest.address] = rest
            pool.unmapped.append(rest)
            pool.unmapped.sort(key=lambda block: block.address)
        begin = block.address
        self._merged(block, block.prev)
        self._merged(block, block.next)
        pool.insert(block)
        self.reserved += mapped
        self.on_segment(("segment_map", begin, mapped, pool.stream))
        return block

    def _unmap(self, block: Block) -> None:
        """Give back the pages that lie wholly in a free block."""
        pool, page = block.pool, block.pool.page
        base = self._base(block)
        begin = base + -(-(block.address - base) // page) * page
        end = base + (block.address + block.size - base) // page * page
        if begin >= end:
            return
        pool.remove(block)
        before, after = begin - block.address, block.address + block.size - end
        del self._blocks[block.address]
        if before:
            head = Block(block.address, before, pool, expandable=True)
            head.link(block.prev, block)
            self._blocks[head.address] = head
            pool.insert(head)
        if after:
            tail = Block(end, after, pool, expandable=True)
            tail.link(block, block.next)
            self._blocks[tail.address] = tail
            pool.insert(tail)
        block.address, block.size, block.mapped = begin, end - begin, False
        self._blocks[begin] = block
        self._merged(block, block.prev)
        self._merged(block, block.next)
        self.reserved -= end - begin
        self.driver.unmap(begin, end - begin)
        self.on_segment(("segment_unmap", begin, end - begin, pool.stream))
        if block.is_split:
            pool.unmapped.append(block)
            pool.unmapped.sort(key=lambda block: block.address)
        else:  # nothing is left of the segment but its address space
            del self._blocks[block.address]

    @staticmethod
    def _base(block: Block) -> int:
        while block.prev is not None:
            block = block.prev
        return block.address

    # -- state ----------------------------------------------------------------------------------------------------

    def adopt(
        self, address: int, size: int, stream: int, small: bool, used: Iterable[tuple[int, int, int]], space: int = 0
    ) -> None:
        """A segment that was there before: ``used`` has (address, bytes, bytes asked for) of its blocks, oldest address first.

        ``space``: of an expandable segment, the address space up to its next mapped part.
        """
        pool, position, last = self.pool(small, stream), address, None
        end, expandable = address + size, space > 0
        parts = [(begin, nbytes, asked) for begin, nbytes, asked in used]
        before = self._blocks.get(self._tails.pop((small, stream), -1)) if expandable else None
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
            pool.unmapped.append(rest)
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
