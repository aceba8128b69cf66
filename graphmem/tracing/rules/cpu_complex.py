"""Complex numbers on the CPU: Fourier transforms and absolute values."""

from __future__ import annotations

import torch

from graphmem.tracing.rules.registry import OpCall, Scratch, rule

_FFT = "aten/src/ATen/native/mkl/SpectralOps.cpp, _fft_r2c_mkl, _fft_c2r_mkl and _fft_c2c_mkl"


@rule("scratch", "aten._fft_c2r.default", device="cpu", source=_FFT)
def to_real(call: OpCall) -> Scratch:
    """The transform overwrites its input, so it gets a copy."""
    return Scratch(after=(call.args[0].nbytes,))


@rule("scratch", "aten._fft_r2c.default", "aten._fft_c2c.default", device="cpu", source=_FFT)
def to_complex(call: OpCall) -> Scratch | None:
    """Batches are moved in front of the transformed dimensions, by a copy where they are not there."""
    tensor, dims = call.args[0], {dim % call.args[0].dim() for dim in call.args[1]}
    last = set(range(tensor.dim() - len(dims), tensor.dim()))
    return Scratch(after=(tensor.nbytes,)) if dims != last or not tensor.is_contiguous() else None


@rule(
    "scratch",
    "aten.abs.default",
    device="cpu",
    source="aten/src/ATen/native/UnaryOps.cpp, unary_op_impl_with_complex_to_float",
)
def absolute(call: OpCall) -> Scratch | None:
    """The absolute values of complex numbers are complex at first."""
    tensor: torch.Tensor = call.args[0]
    return Scratch(after=(tensor.numel() * tensor.element_size(),)) if tensor.is_complex() else None
