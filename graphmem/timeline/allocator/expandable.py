"""Expandable segments: one stretch of address space a pool and stream, backed by pages as it grows (``expandable_segments:True``).

Source: c10/cuda/CUDACachingAllocator.cpp, ``ExpandableSegment``, ``try_allocate_expandable_block``, ``unmap_block``.
"""

from __future__ import annotations

from typing import Protocol

from graphmem.timeline.allocator.blocks import Block, Pool
from graphmem.timeline.allocator.driver import Driver, SegmentEvent
from graphmem.timeline.allocator.heap import Heap


class Device(Protocol):
    """Where pages come from, and who hears of them."""

    driver: Driver

    def on_segment(self, event: SegmentEvent, /) -> None:
        """A mapping came or went."""


def best_expandable(heap: Heap, pool: Pool, index: int) -> int:
    """A block that can grow counts with what it can grow to, so that the end of a segment is taken last."""

    def reach(block: Block) -> int:
        return block.size + (block.next.size if block.next is not None and not block.next.mapped else 0)

    while index + 1 < len(pool.keys):
        here, further = (heap.free_block(pool, i) for i in (index, index + 1))
        if not here.expandable or reach(further) >= reach(here):
            break
        index += 1
    return index


def expanded(heap: Heap, device: Device, pool: Pool, size: int) -> Block | None:
    """Map memory behind the lowest address space with room for ``size``, free memory before it included."""
    block = _room(heap, device, pool, size)
    if not block.mapped:
        grown = _map(heap, device, block, min(block.size, size))
        if grown is None:
            return None
        block = grown
    while block.size < size:
        assert block.next is not None
        grown = _map(heap, device, block.next, min(size - block.size, block.next.size))
        if grown is None:
            return None
        block = grown
    pool.remove(block)
    return block


def _room(heap: Heap, device: Device, pool: Pool, size: int) -> Block:
    for block in pool.unmapped:
        start = block.prev if block.prev is not None and block.prev.free else block
        reach, part = 0, start
        while part is not None and part.free and reach < size:
            reach += part.size
            part = part.next  # type: ignore[assignment]
        if reach >= size:
            return start
    address, space = device.driver.reserve(pool.page)
    block = Block(address, space, pool, expandable=True)
    block.mapped = False
    heap.put(block)
    pool.insert_unmapped(block)
    return block


def _map(heap: Heap, device: Device, block: Block, size: int) -> Block | None:
    """Back the beginning of an unmapped block with pages; the free block it then is part of."""
    pool = block.pool
    mapped = -(-size // pool.page) * pool.page
    if not device.driver.map(block.address, mapped):
        return None
    pool.unmapped.remove(block)
    block.mapped = True
    if mapped < block.size:
        rest = Block(block.address + mapped, block.size - mapped, pool, expandable=True)
        rest.mapped = False
        rest.link(block, block.next)
        block.next, block.size = rest, mapped
        heap.put(rest)
        pool.insert_unmapped(rest)
    begin = block.address
    heap.merged(block, block.prev)
    heap.merged(block, block.next)
    pool.insert(block)
    heap.reserved += mapped
    device.on_segment(("segment_map", begin, mapped, pool.stream))
    return block


def unmap(heap: Heap, device: Device, block: Block) -> None:
    """Give back the pages that lie wholly in a free block."""
    pool, page = block.pool, block.pool.page
    base = _base(block)
    begin = base + -(-(block.address - base) // page) * page
    end = base + (block.address + block.size - base) // page * page
    if begin >= end:
        return
    pool.remove(block)
    before, after = begin - block.address, block.address + block.size - end
    heap.gone(block)
    if before:
        head = Block(block.address, before, pool, expandable=True)
        head.link(block.prev, block)
        heap.put(head)
        pool.insert(head)
    if after:
        tail = Block(end, after, pool, expandable=True)
        tail.link(block, block.next)
        heap.put(tail)
        pool.insert(tail)
    block.address, block.size, block.mapped = begin, end - begin, False
    heap.put(block)
    heap.merged(block, block.prev)
    heap.merged(block, block.next)
    heap.reserved -= end - begin
    device.driver.unmap(begin, end - begin)
    device.on_segment(("segment_unmap", begin, end - begin, pool.stream))
    if block.is_split:
        pool.insert_unmapped(block)
    else:  # nothing is left of the segment but its address space
        heap.gone(block)


def _base(block: Block) -> int:
    while block.prev is not None:
        block = block.prev
    return block.address
