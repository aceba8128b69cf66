"""Blocks of vLLM's pool: layers with equal specs in groups of equal size, one page of each group's layer in every tensor.

The arithmetic of vllm/v1/core/kv_cache_utils.py (and, for V0, vllm/worker/cache_engine.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from graphmem.engines.vllm.specs import Spec
from graphmem.engines.vllm.versions import Release


@dataclass(frozen=True)
class Group:
    """Layers that share one table of blocks."""

    spec: Spec
    layers: int


@dataclass(frozen=True)
class Pool:
    """A pool laid out: its groups and how many bytes a block takes over all its tensors."""

    groups: tuple[Group, ...]
    #: Tensors, one for each place in a group.
    places: int
    #: Bytes of one block in all tensors.
    block_bytes: int

    def num_blocks(self, available: int) -> int:
        """Blocks that ``available`` bytes hold."""
        if not self.block_bytes:
            return 1  # a model that keeps nothing still has the block that stands for none
        return max(0, available // self.block_bytes)

    def blocks_of_request(self, max_model_len: int, batched_tokens: int) -> float:
        """Blocks one request of ``max_model_len`` tokens takes, over all groups."""
        return sum(
            math.ceil(group.spec.bytes_of_request(max_model_len, batched_tokens) / group.spec.page)
            for group in self.groups
        )

    def concurrency(self, blocks: int, max_model_len: int, batched_tokens: int) -> float:
        """Requests of ``max_model_len`` tokens that run at once, as the log's "Maximum concurrency"."""
        one = self.blocks_of_request(max_model_len, batched_tokens)
        return blocks / one if one else math.inf

    def tokens(self, release: Release, blocks: int, max_model_len: int, batched_tokens: int) -> int:
        """What the log calls "GPU KV cache size"."""
        if release.v1 and release.tokens_by_concurrency:
            return int(self.concurrency(blocks, max_model_len, batched_tokens) * max_model_len)
        return blocks // len(self.groups) * min(group.spec.block for group in self.groups if group.spec.block)


def pool(specs: Sequence[Spec], release: Release) -> Pool:
    """The pool that a release lays out for layers with these specs, in the model's order."""
    specs = _unified(specs, release) if release.v1 else list(specs)
    buckets = Counter(specs)
    if len(buckets) <= 1 or not release.v1:
        groups = tuple(Group(spec, count) for spec, count in buckets.items())
        return Pool(groups, len(specs), sum(spec.page for spec in specs))
    if _is_uniform(list(buckets), release):
        # One type of attention, several sizes: one group whose block holds every layer's page.
        largest = max(buckets, key=lambda spec: spec.page)
        return Pool((Group(largest, len(specs)),), len(specs), sum(spec.page for spec in specs))
    size = _group_size(list(buckets.values()), release)
    groups = tuple(Group(spec, size) for spec, count in buckets.items() for _ in range(math.ceil(count / size)))
    return Pool(groups, size, size * max(spec.page for spec in buckets))


def _types(specs: Iterable[Spec]) -> set[str]:
    """Types of layers; a latent is a full attention to vLLM, whose classes say so."""
    return {"full" if spec.kind == "mla" else spec.kind for spec in specs}


def _unified(specs: Sequence[Spec], release: Release) -> list[Spec]:
    """Pages of one size: smaller ones get more tokens. Where that cannot be, pages are padded, or (before 0.33) every layer is full attention."""
    kinds = _types(specs)
    largest = max((spec.page for spec in specs), default=0)
    if len(kinds) <= 1 or all(spec.page == largest for spec in specs):
        return list(specs)
    if all(largest % spec.page == 0 for spec in specs):
        return [replace(spec, block=spec.block * (largest // spec.page)) for spec in specs]
    if release.since("0.33") and "mla" not in {spec.kind for spec in specs}:
        return [replace(spec, padded=largest) for spec in specs]
    return [replace(spec, kind="full", size=0) if spec.kind in ("sliding", "chunked") else spec for spec in specs]


def _is_uniform(buckets: list[Spec], release: Release) -> bool:
    kinds = _types(buckets)
    padded = kinds == {"state"} and release.since("0.33")  # there, states of two sizes are padded to the larger
    return len(kinds) == 1 and len({spec.page for spec in buckets}) > 1 and release.since("0.11") and not padded


def _group_size(counts: list[int], release: Release) -> int:
    """Layers in a group: as many as the smallest bucket has, or the largest where that wastes little."""
    smallest, largest = min(counts), max(counts)
    allowed = 1.5 if release.since("0.18") else 1.25 if release.since("0.12") else 0.0
    return largest if largest < allowed * smallest else smallest
