"""Matrix products of groups of rows, one matrix a group: how mixture-of-experts layers run their experts."""

from __future__ import annotations

import torch

from graphmem.tracing.rules.registry import OpCall, rule


@rule(
    "output",
    "aten._grouped_mm.default",
    source="aten/src/ATen/native/GroupedMMUtils.h, create_grouped_gemm_output_tensor",
)
def grouped_mm(call: OpCall) -> torch.Tensor:
    """Its meta kernel takes bfloat16 only, the devices' also float16 and float32. Rows of the result are padded to 16 bytes on CUDA."""
    a, b, groups = call.args[0], call.args[1], call.argument(2, "offs")
    dtype = call.argument(4, "out_dtype") or a.dtype
    shape: tuple[int, ...]
    if a.dim() == 2 and b.dim() == 2:
        shape = (groups.shape[0], a.shape[0], b.shape[1])
    elif a.dim() == 2:
        shape = (a.shape[0], b.shape[-1])
    elif b.dim() == 2:
        shape = (a.shape[1], b.shape[1])
    else:
        shape = (a.shape[0], a.shape[1], b.shape[-1])
    if call.device.type != "cuda":
        return torch.empty(shape, dtype=dtype, device="meta")
    step = 16 // dtype.itemsize
    row = -(-shape[-1] // step) * step
    stride = (row, 1) if len(shape) == 2 else (shape[1] * row, row, 1)
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
