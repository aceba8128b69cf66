"""The budget asked the other way round: the least utilization, the longest context, the most requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from graphmem.engines.vllm.budget import Budget
from graphmem.errors import GraphmemError


def least_utilization(found: Budget) -> float | None:
    """The smallest ``gpu_memory_utilization``, in hundredths, with which one request of ``max_model_len`` fits; None: no share does."""

    def enough(hundredths: int) -> bool:
        tried = found.again(gpu_memory_utilization=hundredths / 100)
        return tried.available > 0 and tried.left(found.max_model_len, 1) >= 0

    least = _first(enough, 1, 100)
    return None if least is None else least / 100


def longest_model_len(found: Budget) -> int | None:
    """The longest ``max_model_len`` of which one request fits, up to the model's own; None: not even one token does."""
    longest = found.layout.context or found.max_model_len

    def too_long(tokens: int) -> bool:
        return not found.again(max_model_len=tokens).starts

    first = _first(too_long, 1, longest)
    if first is None:
        return longest
    return first - 1 or None


def most_requests(found: Budget, tokens: int) -> int:
    """How many requests of ``tokens`` run at once, not more than ``max_num_seqs``."""
    one = found.request_bytes(tokens)
    room = found.blocks * found.pool.block_bytes
    return min(room // one if one else found.schedule.max_num_seqs, found.schedule.max_num_seqs)


def what_starts(found: Budget) -> Iterator[tuple[str, Budget]]:
    """(change as typed, the budget with it) of each single change with which vLLM starts."""
    if longest := longest_model_len(found):
        yield f"--max-model-len {longest}", found.again(max_model_len=longest)
    quantizes = () if found.model.is_quantized or found.settings.quantization else ("fp8", "awq-4")
    changes: list[tuple[str, dict[str, object]]] = [("--kv-cache-dtype fp8", {"kv_cache_dtype": "fp8"})]
    changes += [(f"--quantization {key}", {"quantization": key}) for key in quantizes]
    changes += [(f"--tensor-parallel-size {gpus}", {"tensor_parallel_size": gpus}) for gpus in (2, 4, 8)]
    for said, change in changes:
        gpus = change.get("tensor_parallel_size")
        if isinstance(gpus, int) and gpus <= found.settings.tensor_parallel_size:
            continue
        try:
            tried = found.again(**change)
            starts = tried.starts
        except GraphmemError:  # heads that do not divide, a dtype the GPU has not
            continue
        if starts:
            yield said, tried
            if gpus:
                return


def _first(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The first number from ``low`` to ``high`` from which on ``holds`` is true; None if it is true for none."""
    if not holds(high):
        return None
    while low < high:
        middle = math.floor((low + high) / 2)
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
