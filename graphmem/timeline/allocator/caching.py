"""The caching allocator: serves requests from free blocks, splits and merges them, and goes to the device when none fits.

Facts from c10/cuda/CUDACachingAllocator.cpp (``DeviceCachingAllocator``), whose words are used: a *segment* is what the device
gave, a *block* is a part of one, *active* is allocated or still used by another stream, *reserved* is the sum of segments,
*inactive split* is free memory in segments that are partly in use, which cannot be given back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from graphmem.timeline.allocator.blocks import Block, Pool
from graphmem.timeline.allocator.conf import AllocConf
from graphmem.timeline.allocator.driver import DeviceMemory, Driver, SegmentEvent
from graphmem.timeline.allocator.expandable import best_expandable, expanded, unmap
from graphmem.timeline.allocator.heap import Heap
from graphmem.timeline.allocator.sizes import SMALL_SIZE, round_size, segment_size
from graphmem.timeline.events import CUDA_ROUNDING


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


class CachingAllocator(Heap):
    """The state of one device's allocator. All sizes are bytes; ``on_segment`` hears of each segment that comes or goes."""

    def __init__(
        self,
        conf: AllocConf | None = None,
        driver: Driver | None = None,
        on_segment: Callable[[SegmentEvent], None] = _unheard,
    ) -> None:
        self.conf = conf or AllocConf()
        super().__init__(self.conf.large_segment_size)
        self.driver: Driver = driver or DeviceMemory()
        self.on_segment = on_segment
        #: How often everything cached was given back because the device had no more (``num_alloc_retries``).
        self.retries = 0
        total = self.driver.total
        fraction = self.conf.memory_fraction
        self.allowed = int(fraction * total) if fraction is not None and total is not None else None
        self._collects = self.allowed is not None and self.conf.garbage_collection_threshold > 0
        divides = any(divisions > 1 for divisions in self.conf.roundup_power2_divisions)
        self._round: Callable[[int], int] = partial(round_size, conf=self.conf) if divides else _to_512

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
            self.put(rest)
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
        subsumed = self.merged(block, block.prev) + self.merged(block, block.next)
        pool.insert(block)
        if not block.expandable:
            self.inactive_split += (block.size if block.prev is not None or block.next is not None else 0) - subsumed

    def empty_cache(self) -> None:
        """Give back every segment that nothing is in, large ones first (``torch.cuda.empty_cache``)."""
        for block in [block for block in self.blocks() if block.waiting]:
            self.release(block)
        for small in (False, True):
            expandable: list[Block] = []
            for pool in self.pools(small):
                for block in self.free_blocks(pool):
                    if block.expandable:
                        expandable.append(block)
                    elif not block.is_split:
                        self._give_back(block)
            for block in expandable:
                unmap(self, self, block)

    def give_back(self, address: int) -> bool:
        """Give one cached segment back, as somebody else decided; False: it is not there, or something is in it."""
        block = self._blocks.get(address)
        if block is None or not block.free or block.is_split or block.expandable:
            return False
        self._give_back(block)
        return True

    # -- finding a block ------------------------------------------------------------------------------------------

    def _cached(self, pool: Pool, size: int) -> Block | None:
        """The free block that fits best: the smallest, then the lowest address."""
        if self._collects:
            pool.clock[0] += 1
        index = pool.at_least(size)
        if index == len(pool.keys):
            return None
        block = self._blocks[pool.address(index)]
        if block.expandable:
            index = best_expandable(self, pool, index)
            block = self.free_block(pool, index)
        limit = self.conf.max_split_size
        if limit is not None:
            if size < limit <= block.size:
                return None
            if size >= limit and block.size >= size + self.conf.max_non_split_rounding:
                return None
        del pool.keys[index]
        return block

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
            return expanded(self, self, pool, size)
        address = self.driver.malloc(wanted)
        if address is None:
            return None
        self.reserved += wanted
        block = Block(address, wanted, pool)
        self.put(block)
        self.on_segment(("segment_alloc", address, wanted, pool.stream))
        return block

    def _splits(self, pool: Pool, size: int, remaining: int) -> bool:
        if pool.small or self.conf.expandable_segments:
            return remaining >= CUDA_ROUNDING
        limit = self.conf.max_split_size
        return remaining > SMALL_SIZE and (limit is None or size < limit)

    # -- giving memory back ---------------------------------------------------------------------------------------

    def _give_back(self, block: Block) -> None:
        self.on_segment(("segment_free", block.address, block.size, block.pool.stream))
        self.driver.free(block.address, block.size)
        self.reserved -= block.size
        block.pool.remove(block)
        self.gone(block)

    def _free_oversized(self, pool: Pool, size: int) -> bool:
        """With max_split_size: give back one cached block that is large enough, or the largest ones until they are."""
        limit = self.conf.max_split_size
        if limit is None:
            return False
        wanted = max(size, limit)
        cached = [block for block in self.free_blocks(pool) if not block.expandable]
        large_enough = next((block for block in cached if block.size >= wanted), None)
        if large_enough is not None:
            self._give_back(large_enough)
            return True
        released = 0
        while released < wanted and cached and cached[-1].size >= limit:
            released += cached[-1].size
            self._give_back(cached.pop())
        return released >= wanted

    def _collect(self) -> None:
        """``garbage_collection_threshold``: give back unsplit cached blocks that were not used for longer than the average."""
        assert self.allowed is not None
        threshold = int(self.conf.garbage_collection_threshold * self.allowed)
        target, reclaimed = self.reserved - threshold, 0
        cached = [block for pool in self.pools(small=False) for block in self.free_blocks(pool) if not block.is_split]
        while reclaimed < target and cached:
            ages = [block.pool.clock[0] - block.cached_at for block in cached]
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
