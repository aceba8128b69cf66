"""Workspaces of cuBLAS and cuBLASLt, which the caching allocator hands out and ``torch.cuda.memory_allocated`` counts.

Source: aten/src/ATen/cuda/CublasHandlePool.cpp and CUDABlas.cpp.
"""

from __future__ import annotations

from graphmem.tracing.device import Device
from graphmem.tracing.rules.registry import OpCall, Scratch, rule

#: ``:4096:2:16:8`` (KiB × count), and Hopper's 32 MiB, which Blackwell has too in 2.13 (PR #175344; parseChosenWorkspaceSize).
_AMPERE, _HOPPER = 4096 * 1024 * 2 + 16 * 1024 * 8, 32 * 2**20
_LT = 2**20


def cublas_workspace(device: Device) -> int:
    """Bytes of a handle's workspace, unless ``CUBLAS_WORKSPACE_CONFIG`` says otherwise."""
    large = device.capability[0] == 9 or (device.capability[0] in (10, 12) and device.torch >= (2, 12))
    return _HOPPER if large else _AMPERE


def _cublas(device: Device) -> tuple[tuple[str, int], ...]:
    return (("cuBLAS", cublas_workspace(device)),)


@rule(
    "scratch", "aten.mm.default", "aten.bmm.default", "aten.baddbmm.default", "aten.mv.default", "aten.dot.default", "aten.addmv.default",
    "aten.addbmm.default", "aten._grouped_mm.default", device="cuda", source="CublasHandlePool.cpp, getCurrentCUDABlasHandle",
)  # fmt: skip
def matrix_product(call: OpCall) -> Scratch:
    """The first matrix product of a thread gives its cuBLAS handle a workspace, which is kept."""
    return Scratch(workspace=_cublas(call.device))


@rule(
    "scratch",
    "aten.addmm.default",
    device="cuda",
    source="ATen/native/cuda/Blas.cpp, isInputCompliesAddmmCudaLt; PRs #145130, #168175",
)
def product_with_bias(call: OpCall) -> Scratch:
    """With a bias vector it is cuBLASLt's: 1 MiB a call until 2.6, 1 MiB kept until 2.11, cuBLAS's own workspace since."""
    bias, a, b = call.args[:3]
    fused = bias.dim() == 1 and bias.is_contiguous() and bias.shape[0] == b.shape[1] and min(*a.shape, b.shape[1]) > 1
    if not fused or call.device.torch >= (2, 12):
        return Scratch(workspace=_cublas(call.device))
    if call.device.torch >= (2, 7):
        return Scratch(workspace=(*_cublas(call.device), ("cuBLASLt", _LT)))
    return Scratch(workspace=_cublas(call.device), after=(_LT,))
