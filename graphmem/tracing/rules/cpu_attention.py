"""`scaled_dot_product_attention` on the CPU: when its flash kernel runs, and what that and the written-out way allocate."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.tracing.rules.cpu_contiguous import contiguous_bytes
from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

aten = torch.ops.aten
_KERNEL = "aten/src/ATen/native/cpu/FlashAttentionKernel.cpp"
_SELECTION = "aten/src/ATen/native/transformers/sdp_utils_cpp.cpp, use_flash_attention_cpp"


def _mask_fits(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> bool:
    if mask is None:
        return True
    wanted = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])[-mask.dim() :]
    return (
        not mask.requires_grad
        and mask.dim() in (2, 4)
        and all(size in (1, full) for size, full in zip(mask.shape, wanted, strict=True))
        and mask.stride(-1) == 1
    )


def _flash_runs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float, gqa: bool
) -> bool:
    tensors = (query, key, value)
    heads = {tensor.shape[1] for tensor in (key, value)} if all(tensor.dim() == 4 for tensor in tensors) else set()
    return (
        torch.backends.cuda.flash_sdp_enabled()
        and dropout == 0
        and len(heads) == 1
        and (heads == {query.shape[1]} or (gqa and query.shape[1] % heads.pop() == 0))
        and all(tensor.shape[0] == query.shape[0] and tensor.shape[-1] == query.shape[-1] for tensor in tensors)
        and all(tensor.shape[2] and tensor.stride(-1) == 1 for tensor in tensors)
        and query.dtype.is_floating_point
        and _mask_fits(mask, query, key)
    )


@rule("call", torch.nn.functional.scaled_dot_product_attention, device="cpu", source=_SELECTION)
def attention(call: Any) -> Any:
    """On meta attention is written out; the CPU has a flash kernel, for all that has no dropout."""
    query, key, value = (call.argument(position, name) for position, name in enumerate(("query", "key", "value")))
    mask, dropout = call.argument(3, "attn_mask"), call.argument(4, "dropout_p", 0.0)
    if not _flash_runs(query, key, value, mask, dropout, bool(call.kwargs.get("enable_gqa"))):
        return NotImplemented
    if mask is not None and mask.dtype == torch.bool:
        zero, masked = (
            torch.scalar_tensor(number, dtype=query.dtype, device="meta") for number in (0.0, float("-inf"))
        )
        mask = torch.where(mask, zero, masked)
        del zero, masked
    causal, scale = call.argument(5, "is_causal", False), call.kwargs.get("scale")
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout, causal, attn_mask=mask, scale=scale
    )[0]


def _tiles(queries: int, keys: int) -> tuple[int, int]:
    """Rows and columns of the scores that a thread works on at a time."""
    rows = 256 if queries >= 768 else 64 if queries >= 192 else 32
    return min(rows, queries), min(512, keys)


@rule(
    "scratch",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    device="cpu",
    source=f"{_KERNEL}, cpu_flash_attention",
)
def flash(call: OpCall) -> Scratch:
    """A tile of scores with its maxima, sums and result in float32, and the tile again in a 16-bit dtype. For one thread."""
    query, key = call.args[0], call.args[1]
    rows, columns = _tiles(query.shape[2], key.shape[2])
    work = max(query.dtype.itemsize, 4)
    reduced = rows * columns * query.dtype.itemsize if query.dtype.itemsize < 4 else 0
    return Scratch(after=(rows * (columns + 2 + query.shape[3]) * work, reduced))


@rule("scratch", "aten._scaled_dot_product_flash_attention_for_cpu_backward.default", device="cpu",
      source=f"{_KERNEL}, cpu_flash_attention_backward")  # fmt: skip
def flash_backward(call: OpCall) -> Scratch:
    """The gradient made contiguous; two tiles of scores; a sum for each row of a tile. For one thread."""
    gradient, query, key = call.args[:3]
    rows, columns = _tiles(query.shape[2], key.shape[2])
    work = max(query.dtype.itemsize, 4)
    reduced = 2 * rows * columns * query.dtype.itemsize if query.dtype.itemsize < 4 else 0
    return Scratch(after=(contiguous_bytes(gradient.transpose(1, 2)), 2 * rows * columns * work, reduced, rows * work))


@rule("scratch", "aten._safe_softmax.default", source="aten/src/ATen/native/transformers/attention.cpp, _safe_softmax")
def safe_softmax(call: OpCall) -> Scratch:
    """Rows that are masked as a whole are found, and set to a zero that is a tensor."""
    scores = call.args[0]
    rows = scores.numel() // max(scores.shape[call.args[1]], 1)
    return Scratch(program=(Out(), scores.numel(), rows, call.result.element_size()))


@rule("scratch", "aten._transformer_encoder_layer_fwd.default", device="cpu",
      source="aten/src/ATen/native/transformers/transformer.cpp, transformer_encoder_layer_forward; attention.cpp, native_multi_head_attention")  # fmt: skip
def encoder_layer(call: OpCall) -> Scratch:
    """Queries, keys and values twice (as computed, then by heads), scores, two norms with their statistics, the wide layer."""
    source, width, heads = call.args[:3]
    norm_first, wide = call.args[8], call.args[14]
    item, tokens = source.element_size(), source.shape[0] * source.shape[1]
    plain, statistics = tokens * width * item, tokens * item
    scores = source.shape[0] * heads * source.shape[1] ** 2 * item
    program: list[int | Out | Free] = []

    def take(nbytes: int) -> int:
        program.append(nbytes)
        return sum(isinstance(step, int) for step in program) - 1

    def normed() -> int:
        output, mean, deviation = take(plain), take(statistics), take(statistics)
        program.extend((Free(mean), Free(deviation)))
        return output

    def attended() -> int:
        joined, split = take(3 * plain), take(3 * plain)
        program.append(Free(joined))
        program.append(Free(take(scores)))
        context, result = take(plain), take(plain)
        program.extend((Free(context), Free(split)))
        return result

    first = normed() if norm_first else None
    after_attention = attended()
    if first is not None:
        program.append(Free(first))
    normed_once = normed()
    if not norm_first:
        program.append(Free(after_attention))
    hidden = take(tokens * wide.shape[0] * item)
    if norm_first:
        program.extend((Out(), Free(hidden), Free(normed_once)))
        return Scratch(program=tuple(program))
    narrow = take(plain)
    program.append(Free(hidden))
    program.append(Out())
    mean, deviation = take(statistics), take(statistics)
    program.extend((Free(mean), Free(deviation), Free(narrow)))
    return Scratch(program=tuple(program))
