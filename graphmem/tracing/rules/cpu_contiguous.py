"""Kernels for the CPU that read their inputs as one dense block, and copy those that are not."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule


def contiguous_bytes(tensor: torch.Tensor | None) -> int:
    """Bytes of the copy that ``tensor.contiguous()`` makes; 0 where it makes none."""
    return 0 if tensor is None or tensor.is_contiguous() else tensor.numel() * tensor.element_size()


def _copies(*positions: int) -> Any:
    """A rule: the arguments at these positions are made contiguous after the result is allocated."""

    def copied(call: OpCall) -> Scratch | None:
        """The kernel reads dense memory; what is strided or broadcast (the gradient of a sum) is copied first."""
        after = tuple([contiguous_bytes(call.args[position]) for position in positions])
        return Scratch(after=after) if any(after) else None

    return copied


_POOLING = "aten/src/ATen/native/cpu/MaxPoolKernel.cpp, AvgPoolKernel.cpp and AdaptiveAvgPoolKernel.cpp, *_backward_kernel_impl"
for _name in (
    "max_pool3d_with_indices_backward", "avg_pool3d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
):  # fmt: skip
    rule("scratch", f"aten.{_name}.default", device="cpu", source=_POOLING)(_copies(0))

_PADDING = "aten/src/ATen/native/ReflectionPad.cpp and ReplicationPadding.cpp, *_backward_out_cpu"
for _name in (
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
):
    rule("scratch", f"aten.{_name}_backward.default", device="cpu", source=_PADDING)(_copies(0))

rule("scratch", "aten._softmax_backward_data.default", "aten._log_softmax_backward_data.default", device="cpu",
     source="aten/src/ATen/native/SoftMax.cpp, TORCH_IMPL_FUNC(softmax_backward_cpu_out)")(_copies(0, 1))  # fmt: skip
rule("scratch", "aten._softmax.default", "aten._log_softmax.default", device="cpu",
     source="aten/src/ATen/native/SoftMax.cpp, TORCH_IMPL_FUNC(softmax_cpu_out)")(_copies(0))  # fmt: skip
rule("scratch", "aten.embedding_dense_backward.default", device="cpu",
     source="aten/src/ATen/native/Embedding.cpp, embedding_dense_backward_cpu")(_copies(1, 0))  # fmt: skip
rule("scratch", "aten.pixel_unshuffle.default", "aten.pixel_shuffle.default", device="cpu",
     source="aten/src/ATen/native/PixelShuffle.cpp, pixel_shuffle_cpu")(_copies(0))  # fmt: skip
rule("scratch", "aten.gelu_backward.default", device="cpu",
     source="aten/src/ATen/native/mkldnn/Gelu.cpp, mkldnn_gelu_backward")(_copies(0, 1))  # fmt: skip
rule("scratch", "aten.nll_loss_forward.default", "aten.nll_loss_backward.default", device="cpu",
     source="aten/src/ATen/native/LossNLL.cpp, nll_loss_out_frame")(_copies(1))  # fmt: skip


@rule("scratch", "aten.mm.default", "aten.addmm.default", device="cpu",
      source="aten/src/ATen/native/LinearAlgebra.cpp, addmm_impl_cpu_")  # fmt: skip
def matrix_product(call: OpCall) -> Scratch | None:
    """BLAS takes a matrix by rows or by columns; one that is neither (a broadcast gradient) is copied."""
    first, second = call.args[-2:]
    after = (_blas_copy(first), _blas_copy(second))
    return Scratch(after=after) if any(after) else None


def _blas_copy(matrix: torch.Tensor) -> int:
    rows, columns = matrix.shape[-2:]
    down, across = matrix.stride()[-2:]
    suits = (across == 1 and down >= max(1, columns)) or (down == 1 and across >= max(1, rows))
    return 0 if suits else matrix.numel() * matrix.element_size()


@rule("scratch", "aten.bmm.default", "aten.baddbmm.default", device="cpu",
      source="aten/src/ATen/native/LinearAlgebra.cpp, bmm_out_or_baddbmm_")  # fmt: skip
def batched_product(call: OpCall) -> Scratch | None:
    """Small products have a loop of their own; larger ones go to MKL, matrix by matrix where it cannot take the batch."""
    first, second = call.args[-2:]
    batch, rows, inner = first.shape
    columns = second.shape[2]
    if inner * rows * columns < 400 or (_batch_suits(first) and _batch_suits(second)):
        return None
    copies = [nbytes // batch for nbytes in (_blas_copy(first), _blas_copy(second)) if nbytes]
    program: list[int | Out | Free] = [Out()]
    for start in range(0, len(copies) * min(batch, 1024), len(copies) or 1):
        program += [*copies, *(Free(start + index) for index in range(len(copies)))]
    return Scratch(program=tuple(program)) if copies else None


def _batch_suits(matrices: torch.Tensor) -> bool:
    _, rows, columns = matrices.shape
    _, down, across = matrices.stride()
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)


@rule("scratch", "aten.embedding.default", device="cpu", source="aten/src/ATen/native/Embedding.cpp, embedding_symint")
def embedding(call: OpCall) -> Scratch | None:
    """Rows are selected by one flat list of indices, a copy where they are not dense."""
    nbytes = contiguous_bytes(call.args[1])
    return Scratch((nbytes,)) if nbytes else None
