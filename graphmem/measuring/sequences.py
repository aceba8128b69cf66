"""How much two sequences of events have in common."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

_MOST_EDITS = 2000


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence (Myers 1986); beyond 2,000 edits difflib's smaller estimate."""
    start = common_prefix(a, b)
    a, b = a[start:], b[start:]
    end = common_prefix(a[::-1], b[::-1])
    a, b = a[: len(a) - end], b[: len(b) - end]
    reach = {1: 0}
    for edits in range(min(len(a) + len(b), _MOST_EDITS) + 1):
        for k in range(-edits, edits + 1, 2):
            down = k == -edits or (k != edits and reach[k - 1] < reach[k + 1])
            x = reach[k + 1] if down else reach[k - 1] + 1
            while x < len(a) and x - k < len(b) and a[x] == b[x - k]:
                x += 1
            reach[k] = x
            if x >= len(a) and x - k >= len(b):
                return start + end + (len(a) + len(b) - edits) // 2
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return start + end + sum(block.size for block in blocks)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements the two begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
