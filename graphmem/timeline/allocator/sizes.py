"""How the allocator rounds a request, and how much it asks the device for when no cached block fits. Bytes throughout."""

from __future__ import annotations

from graphmem.timeline.allocator.conf import INTERVALS, AllocConf
from graphmem.timeline.events import CUDA_ROUNDING
from graphmem.units import MIB

#: Requests up to 1 MiB share segments of 2 MiB (``kSmallSize``, ``kSmallBuffer``).
SMALL_SIZE, SMALL_SEGMENT = MIB, 2 * MIB
#: From 10 MiB on a request has a segment of its own, a multiple of 2 MiB (``kMinLargeAlloc``, ``kRoundLarge``).
_OWN_SEGMENT_FROM, _ROUND_LARGE = 10 * MIB, 2 * MIB


def round_size(nbytes: int, conf: AllocConf) -> int:
    """The size of block a request is served with: a multiple of 512, or the next division of a power of two."""
    if nbytes < CUDA_ROUNDING:
        return CUDA_ROUNDING
    interval = min(max(nbytes.bit_length() - 1 - 20, 0), INTERVALS - 1)
    divisions = conf.roundup_power2_divisions[interval]
    if divisions <= 1 or nbytes <= CUDA_ROUNDING * divisions:
        return -(-nbytes // CUDA_ROUNDING) * CUDA_ROUNDING
    floor = 1 << (nbytes.bit_length() - 1)
    step = floor // divisions
    return nbytes if floor == nbytes else -(-nbytes // step) * step


def segment_size(size: int, conf: AllocConf) -> int:
    """What is asked of ``cudaMalloc`` for a block of ``size``."""
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size < _OWN_SEGMENT_FROM:
        return conf.large_segment_size
    return -(-size // _ROUND_LARGE) * _ROUND_LARGE
