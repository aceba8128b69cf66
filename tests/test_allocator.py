"""The simulated caching allocator: facts of PyTorch's source worked out by hand, and what must hold of any sequence of requests."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmem.timeline.allocator.caching import CachingAllocator, OutOfMemoryError
from graphmem.timeline.allocator.conf import AllocConf, alloc_conf
from graphmem.timeline.allocator.driver import DeviceMemory
from graphmem.timeline.allocator.out_of_memory import explained
from graphmem.timeline.allocator.simulate import Request, Simulation, segments_of, simulate
from graphmem.timeline.allocator.sizes import round_size, segment_size

MIB = 2**20


def run(*requests: Request, conf: str = "", total: int | None = None, taken: int = 0) -> Simulation:
    return simulate(requests, CachingAllocator(alloc_conf(conf), DeviceMemory(total, taken)))


def alloc(block: int, nbytes: int, stream: int = 0) -> Request:
    return Request("alloc", block, nbytes, stream)


def free(block: int) -> Request:
    return Request("free", block)


@pytest.mark.parametrize(
    ("nbytes", "block", "segment"),
    [
        (0, 512, 2 * MIB),
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (100_000_000, 100_000_256, 96 * MIB),
    ],
)
def test_sizes_are_those_of_the_source(nbytes: int, block: int, segment: int) -> None:
    assert round_size(nbytes, AllocConf()) == block
    assert segment_size(block, AllocConf()) == segment


@pytest.mark.parametrize(
    ("conf", "nbytes", "block"),
    [
        ("roundup_power2_divisions:4", 1200, 1536),  # 4 × 512 and less keep multiples of 512
        ("roundup_power2_divisions:4", 2049, 2560),  # between 2048 and 4096 in steps of 512
        ("roundup_power2_divisions:4", 2**21, 2**21),
        ("roundup_power2_divisions:4", 2**21 + 1, 2**21 + 2**19),
        ("roundup_power2_divisions:[2:8,4:1,>:1]", 3 * MIB + 1, 3 * MIB + MIB // 4),
        ("roundup_power2_divisions:[2:8,4:1,>:1]", 5 * MIB + 1, 5 * MIB + 512),
    ],
)
def test_divisions_of_powers_of_two(conf: str, nbytes: int, block: int) -> None:
    assert round_size(nbytes, alloc_conf(conf)) == block


def test_small_requests_share_a_segment_and_large_ones_split_one() -> None:
    found = run(alloc(0, 100), alloc(1, 1000), alloc(2, 3 * MIB), alloc(3, 17 * MIB))
    small, large = sorted(found.segments, key=lambda segment: segment.size)
    assert [(block.size, block.block) for block in small.blocks] == [(512, 0), (1024, 1), (2 * MIB - 1536, -1)]
    # 17 MiB of 20 are left after 3: they are taken whole. Had more than 1 MiB been left over, it would be split off.
    assert [(block.size, block.block) for block in large.blocks] == [(3 * MIB, 2), (17 * MIB, 3)]


def test_up_to_one_mib_stays_unsplit_in_the_large_pool() -> None:
    found = run(alloc(0, 3 * MIB), alloc(1, 16 * MIB), alloc(2, 2 * MIB))
    first, second = found.segments
    assert [(block.size, block.requested) for block in first.blocks] == [(3 * MIB, 3 * MIB), (17 * MIB, 16 * MIB)]
    assert second.blocks[0].block == 2
    assert found.allocated[-1] == 3 * MIB + 17 * MIB + 2 * MIB


def test_the_smallest_block_that_fits_is_taken_then_the_lowest_address() -> None:
    made = [alloc(i, size * MIB) for i, size in enumerate((30, 40, 30, 30))]
    found = run(*made, free(1), free(0), free(2), alloc(4, 29 * MIB), alloc(5, 29 * MIB), alloc(6, 29 * MIB))
    assert found.addresses[7] == found.addresses[0] < found.addresses[2] == found.addresses[8]
    assert found.addresses[9] == found.addresses[1]
    assert found.reserved[-1] == 130 * MIB


def test_neighbours_merge_when_they_are_free() -> None:
    found = run(alloc(0, 3 * MIB), alloc(1, 3 * MIB), alloc(2, 3 * MIB), free(0), free(2), free(1))
    (segment,) = found.segments
    assert [(block.size, block.state) for block in segment.blocks] == [(20 * MIB, "inactive")]
    assert list(found.inactive_split) == [17 * MIB, 14 * MIB, 11 * MIB, 14 * MIB, 17 * MIB, 0]
    assert found.fragmentation(4) == pytest.approx(1 - 14 / 17)


def test_streams_do_not_share_blocks() -> None:
    found = run(alloc(0, 30 * MIB), free(0), alloc(1, 30 * MIB, stream=7))
    assert found.reserved[-1] == 60 * MIB


def test_what_another_stream_uses_stays_active() -> None:
    asked = [alloc(0, 30 * MIB), Request("free_requested", 0), alloc(1, 30 * MIB), Request("free_completed", 0)]
    found = run(*asked)
    assert list(found.allocated) == [30 * MIB, 0, 30 * MIB, 30 * MIB]
    assert list(found.active) == [30 * MIB, 30 * MIB, 60 * MIB, 30 * MIB]


def test_empty_cache_returns_only_segments_that_nothing_is_in() -> None:
    found = run(alloc(0, 3 * MIB), alloc(1, 30 * MIB), free(1), alloc(2, 100), free(2), Request("empty_cache"))
    assert found.reserved[-1] == 20 * MIB
    assert [event[0] for _, event in found.segment_events if event[0] != "segment_alloc"] == ["segment_free"] * 2
    # Large segments first, as release_cached_blocks goes.
    assert [event[2] for _, event in found.segment_events[-2:]] == [30 * MIB, 2 * MIB]


def test_the_second_step_reserves_what_the_first_has_fragmented() -> None:
    step = [alloc(0, 30 * MIB), alloc(1, 50 * MIB), free(0), free(1)]
    grown = [alloc(0, 31 * MIB), alloc(1, 51 * MIB), free(0), free(1)]
    assert run(*step, *step).reserved[-1] == 80 * MIB
    assert run(*step, *grown).reserved[-1] == 80 * MIB + 52 * MIB  # 31 goes where 50 was, 51 fits nowhere


def test_cached_blocks_are_given_back_before_memory_runs_out() -> None:
    found = run(alloc(0, 60 * MIB), free(0), alloc(1, 70 * MIB), total=100 * MIB)
    assert found.out_of_memory is None
    assert (found.retries, found.reserved[-1]) == (1, 70 * MIB)


def test_out_of_memory_says_what_pytorch_says() -> None:
    asked = [alloc(0, 60 * MIB), alloc(1, 3 * MIB), alloc(2, 30 * MIB)]
    found = run(*asked, total=100 * MIB, taken=10 * MIB)
    died = found.out_of_memory
    assert died is not None
    assert (died.request, died.nbytes, died.tried) == (2, 30 * MIB, 30 * MIB)
    assert explained(died, 100 * MIB, 10 * MIB, AllocConf(), (2, 13)) == (
        "CUDA out of memory. Tried to allocate 30.00 MiB. GPU 0 has a total capacity of 100.00 MiB of which 10.00 MiB is free. Including "
        "non-PyTorch memory, this process has 90.00 MiB memory in use. Of the allocated memory 63.00 MiB is allocated by PyTorch, and 17.00 "
        "MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
        "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  "
        "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
    )
    assert "PYTORCH_CUDA_ALLOC_CONF=expandable" in explained(died, 100 * MIB, 10 * MIB, AllocConf(), (2, 6))


def test_a_fraction_of_the_device_is_a_limit() -> None:
    found = run(alloc(0, 60 * MIB), conf="per_process_memory_fraction:0.5", total=100 * MIB)
    assert found.out_of_memory is not None
    assert "50.00 MiB allowed; " in explained(found.out_of_memory, 100 * MIB, 0, found.conf, (2, 13))


def test_expandable_segments_grow_where_ordinary_ones_are_lost() -> None:
    asked = [alloc(0, 30 * MIB), alloc(1, 50 * MIB), free(0), free(1), alloc(2, 31 * MIB), alloc(3, 51 * MIB)]
    found = run(*asked, conf="expandable_segments:True")
    # Pages of 20 MiB: 80 MiB, then 2 MiB more are needed.
    assert list(found.reserved) == [40 * MIB, 80 * MIB, 80 * MIB, 80 * MIB, 80 * MIB, 100 * MIB]
    assert [(segment.expandable, segment.size) for segment in found.segments] == [(True, 100 * MIB)]
    assert run(*asked).reserved[-1] == 132 * MIB


def test_expandable_segments_are_unmapped_page_by_page() -> None:
    asked = [alloc(0, 30 * MIB), alloc(1, 5 * MIB), alloc(2, 45 * MIB), free(0), free(2), Request("empty_cache")]
    found = run(*asked, conf="expandable_segments:True")
    # The block at 30–35 MiB keeps the page from 20 to 40; the pages 0–20 and 40–80 go.
    assert found.reserved[-1] == 20 * MIB
    assert [event for _, event in found.segment_events][-2:] == [
        ("segment_unmap", found.addresses[0], 20 * MIB, 0),
        ("segment_unmap", found.addresses[0] + 40 * MIB, 40 * MIB, 0),
    ]


def test_blocks_from_max_split_size_on_are_not_split() -> None:
    asked = [alloc(0, 100 * MIB), free(0), alloc(1, 40 * MIB), alloc(2, 85 * MIB)]
    assert run(*asked).reserved[-1] == 100 * MIB + 86 * MIB
    # 40 MiB may not take the block of 100; 85 may (less than 20 MiB larger), and takes it whole.
    kept = run(*asked, conf="max_split_size_mb:64")
    assert kept.reserved[-1] == 140 * MIB
    assert kept.allocated[-1] == 140 * MIB
    wider = [alloc(0, 100 * MIB), free(0), alloc(1, 75 * MIB)]
    assert run(*wider, conf="max_split_size_mb:64").reserved[-1] == 176 * MIB
    assert run(*wider, conf="max_split_size_mb:64,max_non_split_rounding_mb:30").reserved[-1] == 100 * MIB


def test_an_oversized_block_is_freed_alone_when_memory_runs_out() -> None:
    asked = [alloc(0, 100 * MIB), alloc(1, 30 * MIB), free(1), free(0), alloc(2, 75 * MIB)]
    found = run(*asked, conf="max_split_size_mb:64", total=160 * MIB)
    assert found.out_of_memory is None
    assert (found.retries, found.reserved[-1]) == (0, 106 * MIB)  # the 30 stay cached


def test_garbage_collection_frees_what_was_not_used_for_long() -> None:
    old = [alloc(0, 30 * MIB), alloc(1, 20 * MIB), free(0)]
    busy = [request for i in range(5) for request in (alloc(10 + i, 15 * MIB), free(10 + i))]
    asked = [*old, *busy, free(1), alloc(2, 40 * MIB)]
    conf = "garbage_collection_threshold:0.4,per_process_memory_fraction:1.0"
    assert any(event[0] == "segment_free" for _, event in run(*asked, conf=conf, total=100 * MIB).segment_events)
    # Without a fraction PyTorch never collects.
    idle = run(*asked, conf="garbage_collection_threshold:0.4", total=200 * MIB)
    assert all(event[0] == "segment_alloc" for _, event in idle.segment_events)


CONFS = (
    "", "expandable_segments:True", "max_split_size_mb:32", "roundup_power2_divisions:8",
    "garbage_collection_threshold:0.6,per_process_memory_fraction:0.8", "expandable_segments:True,large_segment_size_mb:40",
)  # fmt: skip
SIZES = st.one_of(st.integers(0, 5000), st.integers(0, 3 * MIB), st.integers(0, 80 * MIB))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), SIZES, st.sampled_from([0, 0, 0, 5])),
        st.tuples(st.sampled_from(["free", "free_requested", "free_completed"]), st.integers(0, 99), st.just(0)),
        st.tuples(st.just("empty_cache"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


def _valid(steps: list[tuple[str, int, int]]) -> list[Request]:
    """Steps as requests that a program could make: numbers choose among the blocks that are alive."""
    live: list[int] = []
    waiting: list[int] = []
    requests: list[Request] = []
    for count, (action, number, stream) in enumerate(steps):
        if action == "alloc":
            live.append(count)
            requests.append(Request("alloc", count, number, stream))
        elif action in ("free", "free_requested") and live:
            block = live.pop(number % len(live))
            requests.append(Request(action, block))  # type: ignore[arg-type]
            if action == "free_requested":
                waiting.append(block)
        elif action == "free_completed" and waiting:
            requests.append(Request("free_completed", waiting.pop(number % len(waiting))))
        elif action == "empty_cache":
            requests += [Request("free_completed", block) for block in waiting]
            waiting.clear()
            requests.append(Request("empty_cache"))
    return requests


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, conf=st.sampled_from(CONFS), total=st.sampled_from([None, 120 * MIB, 400 * MIB]))
def test_whatever_is_asked_blocks_tile_their_segments(
    steps: list[tuple[str, int, int]], conf: str, total: int | None
) -> None:
    requests = _valid(steps)
    allocator = CachingAllocator(alloc_conf(conf), DeviceMemory(total))
    live: dict[int, object] = {}
    for request in requests:
        try:
            _serve(allocator, live, request)
        except OutOfMemoryError:
            break
        _check(allocator, conf)
    again = run(*requests, conf=conf, total=total)
    assert again == run(*requests, conf=conf, total=total)


def _serve(allocator: CachingAllocator, live: dict[int, object], request: Request) -> None:
    if request.action == "alloc":
        live[request.block] = allocator.allocate(request.nbytes, request.stream)
    elif request.action == "free":
        allocator.free(live.pop(request.block))  # type: ignore[arg-type]
    elif request.action == "free_requested":
        allocator.free(live[request.block], in_use_elsewhere=True)  # type: ignore[arg-type]
    elif request.action == "free_completed":
        block = live.pop(request.block)
        if block.waiting:  # type: ignore[attr-defined]
            allocator.release(block)  # type: ignore[arg-type]
    else:
        allocator.empty_cache()


def _check(allocator: CachingAllocator, conf: str) -> None:
    segments = segments_of(allocator, {})
    blocks = [block for segment in segments for block in segment.blocks]
    for segment in segments:
        position = segment.address
        for block in segment.blocks:
            assert block.address == position
            assert block.size > 0
            position += block.size
        assert position == segment.address + segment.size
        states = [block.state for block in segment.blocks]
        assert ("inactive", "inactive") not in list(pairwise(states)), "free neighbours merge"
    ends = sorted((segment.address, segment.address + segment.size) for segment in segments)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ends)), "segments overlap"
    assert allocator.allocated == sum(b.size for b in blocks if b.state == "active_allocated")
    assert allocator.active == sum(b.size for b in blocks if b.state != "inactive")
    assert allocator.reserved == sum(segment.size for segment in segments)
    assert allocator.requested <= allocator.active
    assert allocator.allocated <= allocator.active <= allocator.reserved
    free_blocks = [block.size for block in blocks if block.state == "inactive"]
    assert allocator.largest_free == max(free_blocks, default=0)
    assert allocator.total_free == sum(free_blocks)
    if "expandable" not in conf:
        kept = [segment for segment in segments if len(segment.blocks) > 1]
        assert allocator.inactive_split == sum(b.size for s in kept for b in s.blocks if b.state == "inactive")


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, conf=st.sampled_from(CONFS))
def test_what_is_served_is_as_large_as_asked_and_apart(steps: list[tuple[str, int, int]], conf: str) -> None:
    live: dict[int, tuple[int, int]] = {}
    requests = _valid(steps)
    found = run(*requests, conf=conf)
    for index, request in enumerate(requests):
        if request.action == "alloc":
            begin = found.addresses[index]
            assert all(begin + request.nbytes <= b or b + n <= begin for b, n in live.values()), (
                "two live blocks overlap"
            )
            live[request.block] = (begin, request.nbytes)
        elif request.action in ("free", "free_completed"):
            live.pop(request.block)
