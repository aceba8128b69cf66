"""``--alloc-conf`` against PyTorch's own parser, which is in the CPU build too."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.timeline.allocator.conf import INTERVALS, AllocConf, alloc_conf

torch = pytest.importorskip("torch")

MIB = 2**20
#: Keys that only the CUDA build checks; the CPU build skips whatever it does not know.
REFUSED = [
    "max_split_size_mb:10", "max_split_size_mb:abc", "expandable_segments:maybe", "expandable_segments:true",
    "garbage_collection_threshold:2", "garbage_collection_threshold:0", "roundup_power2_divisions:3",
    "roundup_power2_divisions:[300:1,>:2]", "roundup_power2_divisions:[256:3,>:2]", "max_non_split_rounding_mb:10",
    "large_segment_size_mb:40,max_split_size_mb:30", "expandable_segments:True max_split_size_mb:100", "max_split_size_mb",
    "roundup_power2_divisions:[256:1", "expandable_segments=True", ",", "large_segment_size_mb:1", "large_segment_size_mb:10",
]  # fmt: skip
TAKEN = [
    "", "expandable_segments:True", "expandable_segments:False", "max_split_size_mb:100", "max_split_size_mb: 100 ",
    "roundup_power2_divisions:8", "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", "roundup_power2_divisions:[256:0,>:2]",
    "garbage_collection_threshold:0.8,max_split_size_mb:512", "max_non_split_rounding_mb:30", "large_segment_size_mb:40", "large_segment_size_mb:11",
    "backend:native,expandable_segments:True", "expandable_segments:True,",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    if hasattr(torch._C, "_accelerator_setAllocatorSettings"):
        torch._C._accelerator_setAllocatorSettings("large_segment_size_mb:20")
        torch._C._accelerator_setAllocatorSettings("")


def theirs(text: str) -> str | None:
    """PyTorch's first line of refusal, or None."""
    torch._C._accelerator_setAllocatorSettings("large_segment_size_mb:20")
    try:
        torch._C._accelerator_setAllocatorSettings(text)
    except (ValueError, RuntimeError) as error:
        return str(error).splitlines()[0]
    return None


def ours(text: str) -> str | None:
    try:
        alloc_conf(text)
    except GraphmemError as error:
        return str(error)
    return None


needs_theirs = pytest.mark.skipif(
    not hasattr(torch._C, "_accelerator_setAllocatorSettings"),
    reason="this PyTorch has its parser in the CUDA build only",
)


@needs_theirs
@pytest.mark.parametrize("text", TAKEN)
def test_what_pytorch_takes(text: str) -> None:
    assert theirs(text) is None
    assert ours(text) is None


@needs_theirs
@pytest.mark.parametrize("text", REFUSED)
def test_what_pytorch_refuses_in_its_words(text: str) -> None:
    refused, said = theirs(text), ours(text)
    assert refused is not None
    assert said is not None
    # Where PyTorch has words for it; the rest are internal assertions and C++'s own.
    if "INTERNAL ASSERT" not in refused and refused not in ("stoull", "stoi", "stod"):
        assert refused.strip() in said
    assert said.startswith(f'alloc-conf "{text}": ')
    assert "\n" not in said


_WORDS = st.sampled_from(
    ["max_split_size_mb", "expandable_segments", "roundup_power2_divisions", "garbage_collection_threshold", "True", "False", "64", "8", "3",
     "0.5", "1.5", ":", ":", ",", "[", "]", ">", "max_non_split_rounding_mb"]
)  # fmt: skip


@needs_theirs
@settings(max_examples=300, deadline=None)
@given(st.lists(_WORDS, max_size=9))
def test_whatever_graphmem_takes_pytorch_takes(words: list[str]) -> None:
    """Not the other way round: from 2.9 on PyTorch does not look at separators (``max_split_size_mb,64`` passes)."""
    text = "".join(words)
    if ours(text) is None:
        assert theirs(text) is None


_KEYS = ("max_split_size_mb", "max_non_split_rounding_mb", "expandable_segments", "roundup_power2_divisions",
         "garbage_collection_threshold", "large_segment_size_mb")  # fmt: skip
_VALUES = (
    "True",
    "False",
    "true",
    "0",
    "1",
    "8",
    "12",
    "20",
    "30MB",
    "64",
    "0.5",
    "1.5",
    ".9",
    "x",
    "[256:4]",
    "[256:3,>:1]",
    "[64:0,512:2,>:8]",
    "[]",
)


@needs_theirs
@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(_KEYS), st.sampled_from(_VALUES)), max_size=3))
def test_of_settings_with_their_separators_both_say_the_same(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(f"{key}:{value}" for key, value in pairs)
    assert (theirs(text) is None) == (ours(text) is None)


def test_unknown_keys_are_refused_as_the_cuda_build_does() -> None:
    with pytest.raises(
        GraphmemError, match=r"^alloc-conf \"foo:1\": Unrecognized key 'foo' in CUDA allocator config\.$"
    ):
        alloc_conf("foo:1")
    with pytest.raises(UnsupportedError, match="backend:cudaMallocAsync is CUDA's own allocator"):
        alloc_conf("backend:cudaMallocAsync")
    with pytest.raises(GraphmemError, match="per_process_memory_fraction is invalid"):
        alloc_conf("per_process_memory_fraction:1.5")


def test_values() -> None:
    assert alloc_conf("") == AllocConf()
    found = alloc_conf("expandable_segments:True,max_split_size_mb:64,garbage_collection_threshold:0.5")
    assert found == AllocConf(expandable_segments=True, max_split_size=64 * MIB, garbage_collection_threshold=0.5)
    assert alloc_conf("roundup_power2_divisions:8").roundup_power2_divisions == (8,) * INTERVALS
    by_size = alloc_conf("roundup_power2_divisions:[4:2,8:4,16:8,>:1]").roundup_power2_divisions
    # Below the first interval its value holds; ``>`` begins at the last one named (std::fill from last_index).
    assert by_size[:6] == (2, 2, 2, 4, 1, 1)
