"""Reductions on CUDA: a reduction too tall for its outputs is split over several blocks, which meet in a buffer.

Source: aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig, ReduceConfig::global_memory_size and semaphore_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from graphmem.tracing.device import Device
from graphmem.tracing.rules.registry import OpCall, Scratch, rule

_MOST_THREADS, _WARP = 512, 32
#: Threads a multiprocessor holds: CUDA programming guide, table of compute capabilities.
_THREADS_PER_SM = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}


@dataclass(frozen=True, slots=True)
class _Kind:
    """A reducing kernel: bytes of its accumulator and elements it loads at once, for 32-bit and for 16-bit input."""

    accumulator: tuple[int, int] = (4, 4)
    vector: tuple[int, int] = (4, 4)


_SUM, _VALUE, _PAIR = _Kind(vector=(4, 8)), _Kind((4, 2)), _Kind((16, 16))
_KINDS = {
    "sum": _SUM, "mean": _SUM, "amax": _VALUE, "amin": _VALUE, "max": _VALUE, "min": _VALUE, "argmax": _PAIR, "argmin": _PAIR,
    "max.dim": _PAIR, "min.dim": _PAIR, "any": _Kind((1, 1)), "all": _Kind((1, 1)), "var": _Kind((16, 16), (2, 2)),
    "var_mean": _Kind((16, 16), (2, 2)), "std": _Kind((16, 16), (2, 2)), "linalg_vector_norm": _Kind(), "norm": _Kind(), "prod": _Kind(),
}  # fmt: skip


def _power_of_two_up_to(value: int, most: int) -> int:
    return most if value >= most else 1 << (max(value, 1).bit_length() - 1)


def _coalesced(tensor: torch.Tensor, dims: set[int]) -> list[tuple[int, int, bool]]:
    """(size, stride, reduced) of the dimensions, fastest first, neighbours merged as TensorIterator merges them."""
    found = sorted(
        ((tensor.stride(d), tensor.shape[d], d in dims, d) for d in range(tensor.dim()) if tensor.shape[d] != 1),
        key=lambda one: (one[0], -one[3]),
    )
    merged: list[tuple[int, int, bool]] = []
    for stride, size, reduced, _ in found:
        if merged and merged[-1][2] == reduced and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0] * size, merged[-1][1], reduced)
        else:
            merged.append((size, stride, reduced))
    return merged


def split_buffer(tensor: torch.Tensor, dims: set[int], kind: _Kind, device: Device) -> tuple[int, int]:
    """Bytes of the buffer in which the blocks of a split reduction meet, and of its semaphores; zeros where it is not split."""
    shape = _coalesced(tensor, dims)
    inputs = math.prod(size for size, _, reduced in shape if reduced)
    outputs = math.prod(size for size, _, reduced in shape if not reduced)
    if not inputs or not outputs or not shape:
        return 0, 0
    half = tensor.element_size() == 2
    fast = shape[0][2] or outputs == 1
    vector, first, second = 1, (inputs if fast else outputs), (outputs if fast else inputs)
    if shape[0][1] == 1:
        if fast and inputs >= 128 and sum(reduced for *_, reduced in shape) == 1:
            first = inputs // kind.vector[half]
        elif not fast:
            vector = 4
            others = [shape[0][0], tensor.storage_offset(), *(stride for _, stride, _ in shape[1:])]
            while any(value % vector for value in others):
                vector //= 2
            first = outputs // vector
    most = _MOST_THREADS // vector
    width, height = _power_of_two_up_to(first, most), _power_of_two_up_to(second, most)
    across = min(width, _WARP)
    up = min(height, most // across)
    across = min(width, most // up)
    step_in, step_out = (across, 1) if fast else (1, across)
    per_thread = -(-inputs // step_in)
    by_height = per_thread >= min(16 * up, 256)
    if by_height:
        step_in *= up
    else:
        step_out *= up
    grid = -(-(outputs // vector) // step_out)
    target = device.sms * (_THREADS_PER_SM.get(device.capability, 2048) // (across * up))
    per_thread = -(-inputs // step_in)
    if not by_height or per_thread < 256 or grid > target:
        return 0, 0
    blocks = max(min(-(-target // grid), -(-per_thread // 16)), -(-per_thread // 256))
    if blocks <= 1:
        return 0, 0
    return kind.accumulator[half] * outputs * blocks * (1 if fast else across * vector), 4 * grid


@rule(
    "scratch", "aten.sum.default", "aten.sum.dim_IntList", "aten.mean.default", "aten.mean.dim", "aten.amax.default", "aten.amin.default",
    "aten.max.default", "aten.min.default", "aten.argmax.default", "aten.argmin.default", "aten.max.dim", "aten.min.dim", "aten.any.default",
    "aten.any.dim", "aten.all.default", "aten.all.dim", "aten.var.correction", "aten.var_mean.correction", "aten.std.correction",
    "aten.linalg_vector_norm.default", "aten.prod.default", "aten.prod.dim_int", device="cuda", source="Reduce.cuh, gpu_reduce_kernel",
)  # fmt: skip
def reduction(call: OpCall) -> Scratch | None:
    """Blocks that share an output leave their part in a buffer and count themselves off with semaphores. Sums of integers and booleans
    are of an int64 copy (ReduceOpsUtils.h, make_reduction_from_ty)."""
    tensor = call.args[0]
    _, name, overload = call.name.split(".")
    copy = _summed_as(name, tensor, call.result)
    tensor = tensor if copy is None else copy
    position, key = (2, "dim") if name == "linalg_vector_norm" else (1, "dim")
    given = (
        None
        if overload == "default" and name in ("sum", "mean", "max", "min", "any", "all", "prod")
        else call.argument(position, key)
    )
    dims = [given] if isinstance(given, int) else list(given or range(tensor.dim()))
    kind = _KINDS.get(f"{name}.{overload}") or _KINDS[name]
    buffer, semaphores = split_buffer(tensor, {dim % max(tensor.dim(), 1) for dim in dims}, kind, call.device)
    copied = (copy.numel() * copy.element_size(),) if copy is not None else ()
    return Scratch(after=(*copied, *((buffer, semaphores) if buffer else ()))) if copied or buffer else None


def _summed_as(name: str, tensor: torch.Tensor, result: object) -> torch.Tensor | None:
    """The copy in the result's dtype that is summed; None where the kernel converts as it reads (16-bit numbers to float32)."""
    if name not in ("sum", "mean", "prod") or not isinstance(result, torch.Tensor) or result.dtype == tensor.dtype:
        return None
    if tensor.dtype in (torch.float16, torch.bfloat16) and result.dtype == torch.float32:
        return None
    return torch.empty_like(tensor, dtype=result.dtype)
