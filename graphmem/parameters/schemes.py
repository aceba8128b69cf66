"""What a linear weight becomes under each weight quantization: packed values, and the scales that go with them.

One function a scheme: (out_features, in_features) → parts. Checkpoints name the parts, loaders allocate them; both sides of
graphmem (reading packed checkpoints, predicting what a loader stores) use these shapes and no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from graphmem.dtypes import SAFETENSORS, DType


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor that stands in for (a share of) a weight. ``suffix`` is appended to the module's path."""

    suffix: str
    shape: tuple[int, ...]
    dtype: DType
    holds_weight: bool = False

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(math.prod(self.shape))


Layout = Callable[[int, int], tuple[Part, ...]]


@dataclass(frozen=True)
class Scheme:
    """A named way to store linear weights."""

    key: str
    title: str
    layout: Layout
    source: str

    @property
    def bits(self) -> float:
        """Bits of a weight, scales apart."""
        side = 1024
        return 8 * sum(part.nbytes for part in self.layout(side, side) if part.holds_weight) / side**2


_U8, _I8, _I32, _U32 = (SAFETENSORS[name] for name in ("U8", "I8", "I32", "U32"))
_F16, _F32, _F8, _E8M0 = (SAFETENSORS[name] for name in ("F16", "F32", "F8_E4M3", "F8_E8M0"))
_I64 = SAFETENSORS["I64"]


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _llm_int8(out: int, inp: int) -> tuple[Part, ...]:
    # One byte a weight and one fp32 absolute maximum an output row.
    return (Part(".weight", (out, inp), _I8, True), Part(".SCB", (out,), _F32))


def _nf4(out: int, inp: int) -> tuple[Part, ...]:
    # Two weights a byte, one fp32 absolute maximum a block of 64, and the 16 values of the code.
    count = out * inp
    return (
        Part(".weight", (_blocks(count, 2), 1), _U8, True),
        Part(".weight.absmax", (_blocks(count, 64),), _F32),
        Part(".weight.quant_map", (16,), _F32),
    )


def _nf4_double(out: int, inp: int) -> tuple[Part, ...]:
    # Double quantization: the block maxima become bytes, with one fp32 maximum for 256 of them and one offset.
    blocks = _blocks(out * inp, 64)
    return (
        Part(".weight", (_blocks(out * inp, 2), 1), _U8, True),
        Part(".weight.absmax", (blocks,), _U8),
        Part(".weight.quant_map", (16,), _F32),
        Part(".weight.nested_absmax", (_blocks(blocks, 256),), _F32),
        Part(".weight.nested_quant_map", (256,), _F32),
        Part(".weight.nested_offset", (1,), _F32),
    )


def gptq(bits: int, group: int) -> Layout:
    """AutoGPTQ's layout: weights and zero points packed into int32, fp16 scales, one group id an input."""

    def layout(out: int, inp: int) -> tuple[Part, ...]:
        groups = _blocks(inp, group) if group > 0 else 1
        return (
            Part(".qweight", (_blocks(inp * bits, 32), out), _I32, True),
            Part(".qzeros", (groups, _blocks(out * bits, 32)), _I32),
            Part(".scales", (groups, out), _F16),
            Part(".g_idx", (inp,), _I32),
        )

    return layout


def awq(bits: int, group: int) -> Layout:
    """AutoAWQ's GEMM layout: packed along the outputs, no group ids."""

    def layout(out: int, inp: int) -> tuple[Part, ...]:
        groups = _blocks(inp, group) if group > 0 else 1
        packed = _blocks(out * bits, 32)
        return (
            Part(".qweight", (inp, packed), _I32, True),
            Part(".qzeros", (groups, packed), _I32),
            Part(".scales", (groups, out), _F16),
        )

    return layout


def mlx(bits: int, group: int) -> Layout:
    """MLX's affine quantization: packed into uint32, a 16-bit scale and bias a group."""

    def layout(out: int, inp: int) -> tuple[Part, ...]:
        groups = (out, _blocks(inp, group))
        return (
            Part(".weight", (out, _blocks(inp * bits, 32)), _U32, True),
            Part(".scales", groups, _F16),
            Part(".biases", groups, _F16),
        )

    return layout


def fp8_tensor(out: int, inp: int) -> tuple[Part, ...]:
    """One fp32 scale for all of a weight."""
    return (Part(".weight", (out, inp), _F8, True), Part(".weight_scale", (1,), _F32))


def fp8_block(rows: int, columns: int) -> Layout:
    """DeepSeek's layout: one fp32 inverse scale a tile of ``rows`` × ``columns``."""

    def layout(out: int, inp: int) -> tuple[Part, ...]:
        return (
            Part(".weight", (out, inp), _F8, True),
            Part(".weight_scale_inv", (_blocks(out, rows), _blocks(inp, columns)), _F32),
        )

    return layout


def _mxfp4(out: int, inp: int) -> tuple[Part, ...]:
    # OCP Microscaling: two fp4 values a byte, one power-of-two exponent byte for 32 of them.
    return (Part("_blocks", (out, _blocks(inp, 32), 16), _U8, True), Part("_scales", (out, _blocks(inp, 32)), _E8M0))


def nvfp4(out: int, inp: int) -> tuple[Part, ...]:
    """Two values a byte, an fp8 scale for 16 of them and an fp32 one for all (NVIDIA ModelOpt; compressed-tensors names them otherwise)."""
    return (
        Part(".weight", (out, _blocks(inp, 2)), _U8, True),
        Part(".weight_scale", (out, _blocks(inp, 16)), _F8),
        Part(".weight_scale_2", (), _F32),
        Part(".input_scale", (), _F32),
    )


def mxfp4_packed(out: int, inp: int) -> tuple[Part, ...]:
    """compressed-tensors' MXFP4: two values a byte, an exponent byte for 32 of them."""
    return (
        Part(".weight_packed", (out, _blocks(inp, 2)), _U8, True),
        Part(".weight_scale", (out, _blocks(inp, 32)), _U8),
    )


def compressed_int(bits: int, group: int, packs: bool, symmetric: bool) -> Layout:
    """compressed-tensors' integers: packed into int32 (``pack-quantized``) or one a byte, a 16-bit scale a group or output row."""

    def layout(out: int, inp: int) -> tuple[Part, ...]:
        groups = _blocks(inp, group) if group > 0 else 1
        zeros = (
            ()
            if symmetric
            else (
                Part(
                    ".weight_zero_point",
                    (_blocks(out * bits, 32), groups) if packs else (out, groups),
                    _I32 if packs else _I8,
                ),
            )
        )
        scale = Part(".weight_scale", (out, groups), _F16)
        if not packs:
            return (Part(".weight", (out, inp), _I8, True), scale, *zeros)
        return (
            Part(".weight_packed", (out, _blocks(inp * bits, 32)), _I32, True),
            scale,
            *zeros,
            Part(".weight_shape", (2,), _I64),
        )

    return layout


def compressed_float(strategy: str) -> Layout:
    """compressed-tensors' fp8: a 16-bit scale an output row (``channel``), or one for all (``tensor``)."""

    def layout(out: int, inp: int) -> tuple[Part, ...]:
        return (
            Part(".weight", (out, inp), _F8, True),
            Part(".weight_scale", (out, 1) if strategy == "channel" else (1,), _F16),
        )

    return layout


#: What the loading table compares, in its order.
SCHEMES: tuple[Scheme, ...] = (
    Scheme("fp8", "fp8, one scale a tensor", fp8_tensor, "vLLM and compressed-tensors, float8 per-tensor weights"),
    Scheme(
        "fp8-block",
        "fp8, scales of 128 × 128",
        fp8_block(128, 128),
        "DeepSeek-V3 report §3.3.2; transformers FineGrainedFP8",
    ),
    Scheme("llm-int8", "bitsandbytes LLM.int8()", _llm_int8, "Dettmers et al. 2022; bitsandbytes Linear8bitLt (SCB)"),
    Scheme("gptq-4", "GPTQ 4-bit, groups of 128", gptq(4, 128), "Frantar et al. 2022; AutoGPTQ QuantLinear"),
    Scheme("awq-4", "AWQ 4-bit, groups of 128", awq(4, 128), "Lin et al. 2023; AutoAWQ WQLinear_GEMM"),
    Scheme("nf4", "bitsandbytes NF4", _nf4, "Dettmers et al. 2023 (QLoRA); blocks of 64"),
    Scheme(
        "nf4-double",
        "bitsandbytes NF4, double",
        _nf4_double,
        "Dettmers et al. 2023, §3; blocks of 64 and 256",
    ),
    Scheme("mxfp4", "MXFP4, blocks of 32", _mxfp4, "OCP Microscaling Formats v1.0"),
)
