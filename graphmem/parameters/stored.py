"""Stored tensors → what they mean: a parameter with its true count, a quantization scale, or a buffer.

A 4-bit checkpoint stores eight weights in an int32 or two in a byte; counting stored elements gets a 70 B model to 9 B. Which
tensors are packed is read from their siblings (a ``qweight`` beside ``scales``), how densely from the shapes, or from the
checkpoint's own quantization config where shapes cannot say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from graphmem.checkpoint import ModelSpec, TensorSpec
from graphmem.parameters.stored_schemes import quantization_of

Kind = Literal["parameter", "scale", "buffer"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and what it is. ``parameters`` is 0 for scales and buffers, the unpacked count for packed weights."""

    spec: TensorSpec
    kind: Kind
    parameters: int


#: Suffixes of what accompanies a quantized weight, by any of the formats below; taken only beside such a weight.
_SCALE = re.compile(
    r"\.(qzeros|scales|biases|g_idx|SCB|weight_format"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+)"
    r"|weight_(scale|scale_inv|scale_2|zero_point|shape|g_idx|global_scale)"
    r"|input_(scale|global_scale|zero_point)|(input|output|activation|pre_quant|[kvq])_scale|scale|scale_weight|scale_input"
    r"|weight\._scale)$"
)
#: Persistent buffers that headers show among the weights.
_BUFFER = re.compile(
    r"(^|\.)(inv_freq|position_ids|token_type_ids|running_mean|running_var|num_batches_tracked|masked_bias|rope_freqs\.weight"
    r"|diagonal_decay|key_decay|query_decay|slope_rate|weight_integer|bias_integer|fc_scaling_factor|act_scaling_factor"
    r"|codebook\.(inited|cluster_size|embed|embed_avg))$"
)
#: Widths that quantizers use; anything else read off a shape means that the layout is another one.
_BITS = (2, 3, 4, 5, 6, 8)
_INTEGERS = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64")


def stored_tensors(spec: ModelSpec) -> tuple[tuple[StoredTensor, ...], tuple[str, ...]]:
    """Every tensor with its meaning, and a warning for each kind of packing that is not known here."""
    tensors = {tensor.name: tensor for tensor in spec.tensors}
    counts = {
        name: count
        for name, tensor in tensors.items()
        if (count := _unpacked(tensor, tensors, spec.config)) is not None
    }
    quantized = {_module_of_packed(name) for name in counts}
    result: list[StoredTensor] = []
    unknown: list[str] = []
    for name, tensor in tensors.items():
        if name in counts:
            result.append(StoredTensor(tensor, "parameter", counts[name]))
        elif _is_scale(name, quantized):
            result.append(StoredTensor(tensor, "scale", 0))
        elif _is_buffer(tensor):
            result.append(StoredTensor(tensor, "buffer", 0))
        else:
            if tensor.dtype.name in _INTEGERS:
                unknown.append(name)
            result.append(StoredTensor(tensor, "parameter", tensor.elements))
    warnings: tuple[str, ...] = ()
    if unknown:
        method = quantization_of(spec.config).get("quant_method", "an unknown method")
        warnings = (
            f"{len(unknown)} integer tensors are packed by {method} in a way graphmem does not know, first {unknown[0]!r}: "
            "their stored elements are counted as parameters",
        )
    return tuple(result), warnings


def _unpacked(tensor: TensorSpec, tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> int | None:
    """The true number of weights in a quantized tensor; None if the tensor is not one, or how it is packed is not known."""
    name, module = tensor.name, tensor.module
    width = tensor.dtype.block_bytes * 8
    if name.endswith(".qweight"):
        bits = _gptq_bits(tensor, tensors) or _sane(quantization_of(config).get("bits"))
        return tensor.elements * width // bits if bits else None
    if name.endswith(".weight_packed"):
        bits = 4 if tensor.dtype.name == "U8" else _compressed_bits(config)
        return tensor.elements * width // bits if bits else None
    if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in tensors:
        return tensor.elements * 2
    # Of a module's weight, or of experts stacked in one parameter.
    if own := tensors.get(f"{name}_scale") or tensors.get(f"{name}_scale_inv"):
        return _beside_scale(tensor, own, f"{name}_scale_2" in tensors, config)
    if not name.endswith(".weight"):
        return None
    if f"{name}.absmax" in tensors:
        return tensor.elements * width // 4
    if f"{module}.SCB" in tensors:
        return tensor.elements
    # MLX: a scale and a bias a group, in the weights' order.
    if tensor.dtype.name == "U32" and f"{module}.scales" in tensors:
        group = _mlx_group(module, config)
        return math.prod(tensors[f"{module}.scales"].shape) * group if group else None
    if f"{module}.scale" in tensors:
        return _beside_scale(tensor, tensors[f"{module}.scale"], False, config)
    return None


def _beside_scale(weight: TensorSpec, scale: TensorSpec, second: bool, config: Mapping[str, Any]) -> int | None:
    """Weights in a tensor that has a scale: one an element in fp8 and int8, two a byte in the 4-bit formats, by their shapes."""
    if weight.dtype.floating:
        return weight.elements if weight.dtype.bits <= 8 else None
    exponents = scale.dtype.name in ("F8_E8M0", "U8", "F8_E4M3")
    aligned = len(scale.shape) == len(weight.shape) >= 2
    if second or (exponents and aligned and scale.shape[-1] * 32 == weight.shape[-1] * 2):
        return weight.elements * 2  # NVFP4 has a second scale; MXFP4 an exponent for 32 values
    method = str(quantization_of(config).get("quant_method", "")).lower()
    if weight.dtype.name == "U8":
        if method == "bitnet":
            return weight.elements * 4
        halved = aligned and scale.shape[0] == 2 * weight.shape[0]
        return weight.elements * 2 if halved else None  # ModelOpt's W4A16 packs pairs of output rows
    return weight.elements if weight.dtype.name == "I8" else None


def _sane(bits: Any) -> int | None:
    return bits if bits in _BITS and not isinstance(bits, bool) else None


def _gptq_bits(qweight: TensorSpec, tensors: Mapping[str, TensorSpec]) -> int | None:
    """Bits a weight from shapes: GPTQ packs the inputs (g_idx has one entry each), AWQ the outputs (as have scales)."""
    g_idx = tensors.get(f"{qweight.module}.g_idx")
    scales = tensors.get(f"{qweight.module}.scales")
    if len(qweight.shape) != 2 or scales is None or len(scales.shape) != 2:
        return None
    width = qweight.dtype.block_bytes * 8
    if g_idx is not None and g_idx.elements:
        return _sane(width * qweight.shape[0] // g_idx.elements)
    if scales.shape[1] != qweight.shape[1] and scales.shape[1]:
        return _sane(width * qweight.shape[1] // scales.shape[1])
    return None


def _compressed_bits(config: Mapping[str, Any]) -> int | None:
    """Bits of compressed-tensors' packed weights; its groups must agree, since a header does not say which group is which."""
    groups = quantization_of(config).get("config_groups")
    found = {
        group["weights"].get("num_bits")
        for group in (groups.values() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    }
    bits = found.pop() if len(found) == 1 else None
    return bits if isinstance(bits, int) and bits > 0 else None


def _mlx_group(module: str, config: Mapping[str, Any]) -> int | None:
    quantization = quantization_of(config)
    own = quantization.get(module)
    group = (own if isinstance(own, Mapping) else quantization).get("group_size")
    return group if isinstance(group, int) and group > 0 else None


def _module_of_packed(name: str) -> str:
    """What scales hang on: the module of a ``weight``, the parameter itself where experts are stacked in one."""
    module, _, leaf = name.rpartition(".")
    return module if leaf in ("weight", "qweight", "weight_packed") else name


def _is_scale(name: str, quantized: set[str]) -> bool:
    if name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in quantized:
        return True
    if name.removesuffix("_inv").removesuffix("_scale") in quantized and name.endswith(("_scale", "_scale_inv")):
        return True
    found = _SCALE.search(name)
    if found is None:
        return False
    module = name[: found.start()]
    # FP8 KV-cache scales hang on the attention module, whose projections are the quantized ones.
    return module in quantized or any(
        f"{module}.{child}" in quantized for child in ("q_proj", "k_proj", "qkv_proj", "o_proj")
    )


def _is_buffer(tensor: TensorSpec) -> bool:
    """What a module says of itself; else by name, or by what no parameter is: booleans, int64, GPT-2's saved masks [1, 1, n, n]."""
    if tensor.is_buffer or tensor.module_classes:
        return tensor.is_buffer
    shape = tensor.shape
    is_mask = tensor.name.endswith(".bias") and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] > 1
    return is_mask or tensor.dtype.name in ("BOOL", "I64") or bool(_BUFFER.search(tensor.name))
