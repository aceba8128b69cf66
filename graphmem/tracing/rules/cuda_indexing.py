"""Scattered writes on CUDA: gradients of embeddings and of indexed tensors are summed in sorted order.

Sources: aten/src/ATen/native/cuda/Embedding.cu, EmbeddingBackwardKernel.cu, Indexing.cu (index_put_with_sort_kernel).
"""

from __future__ import annotations

from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

#: Keys that CUB sorts in one tile, without memory of its own (it asks for 1 byte), and its lookback state beyond.
_ONE_TILE, _LOOKBACK = 2048, 6655


def sort_scratch(count: int, pair: int) -> int:
    """Bytes of temporary storage for a radix sort of ``count`` (key, value) pairs of ``pair`` bytes: measured 1 B at 512 and 1,000 pairs
    and count · pair + 6,655 B at 4,096 (snapshots of int64 pairs); the limit between is CUB's tuning."""
    return 1 if count <= _ONE_TILE else count * pair + _LOOKBACK


@rule(
    "scratch",
    "aten.embedding_dense_backward.default",
    device="cuda",
    source="Embedding.cu, embedding_dense_backward_cuda",
)
def embedding_backward(call: OpCall) -> Scratch | None:
    """More than 3,072 indices are sorted, and rows of the same token are summed in float32 segments."""
    grad, indices, vocabulary = call.args[0], call.args[1], call.args[2]
    count, width = indices.numel(), grad.shape[-1]
    if count <= 3072:
        return None
    index = indices.element_size()
    segments = min(count, vocabulary)
    partial = (count // 10 + segments) * index
    sums = (count // 10 + segments) * width * (8 if grad.element_size() == 8 else 4)
    return Scratch(
        program=(
            count * index, count * index, count * index, sort_scratch(count, 2 * index), Free(3), Free(2), Out(0), count * index, 8,
            count * index, 1, Free(7), Free(6), segments * index, segments * index, 1, Free(10), 8, partial, sums,
        )
    )  # fmt: skip


@rule(
    "scratch",
    "aten.index_put.default",
    "aten._index_put_impl_.default",
    "aten.index_put_.default",
    device="cuda",
    source="Indexing.cu, index_put_with_sort_kernel",
)
def index_put(call: OpCall) -> Scratch | None:
    """Accumulating writes to the same place must come in order: linear indices are made and sorted."""
    moved = _moved(call)
    if not call.argument(3, "accumulate", False):
        return Scratch(before=moved) if moved else None
    count = max(item.numel() for item in call.args[1] if item is not None)
    copy = () if call.args[2].is_contiguous() else (call.args[2].numel() * call.args[2].element_size(),)
    sorting = (count * 8, count * 8, count * 8, sort_scratch(count, 16))
    return Scratch(program=(*moved, Out(0), count * 8, count * 8, Free(len(moved)), *copy, *sorting))


@rule("scratch", "aten.index.Tensor", device="cuda", source="ATen/native/TensorAdvancedIndexing.cpp, make_info")
def index(call: OpCall) -> Scratch | None:
    """Indices on the host are copied to the device first."""
    moved = _moved(call)
    return Scratch(before=moved) if moved else None


def _moved(call: OpCall) -> tuple[int, ...]:
    return tuple(item.numel() * 8 for item in call.args[1] if item is not None and item.device.type == "cpu")
