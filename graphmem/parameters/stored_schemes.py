"""A checkpoint's own quantization_config → the scheme its packed tensors follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphmem.config import text_config
from graphmem.dtypes import SAFETENSORS
from graphmem.parameters.schemes import SCHEMES, Layout, Part, awq, fp8_block, gptq, mlx


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization settings of a config, wherever its author put them; empty if there are none."""
    for holder in (config, text_config(config)):
        for key in ("quantization_config", "compression_config", "quantization"):
            value = holder.get(key)
            if isinstance(value, Mapping) and value:
                return value
    return {}


@dataclass(frozen=True)
class StoredLayout:
    """The parts a quantized module of a checkpoint is saved as, and the one whose presence tells that it is quantized."""

    layout: Layout
    marker: str
    #: 3-D expert weights [experts, in, out] are packed with the output first.
    stacked: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        return tuple(part.suffix for part in self.layout(256, 256))

    def part(self, suffix: str, shape: tuple[int, ...]) -> Part | None:
        """The part called ``suffix`` of a weight of ``shape`` ([out, in]; [experts, in, out] for stacked experts)."""
        if self.stacked and len(shape) == 3:
            experts, inp, out = shape
            parts = tuple(Part(p.suffix, (experts, *p.shape), p.dtype, p.holds_weight) for p in self.layout(out, inp))
        elif len(shape) == 2:
            parts = self.layout(*shape)
        else:
            return None
        return next((part for part in parts if part.suffix == suffix), None)


def layout_of(config: Mapping[str, Any]) -> StoredLayout | None:
    """How a checkpoint with this config stores its packed weights; None where it is plain or the method is not known here."""
    quantization = quantization_of(config)
    method = str(quantization.get("quant_method") or "").lower()
    bits, group = quantization.get("bits", 4), quantization.get("group_size", 128)
    schemes = {scheme.key: scheme.layout for scheme in SCHEMES}
    if method == "bitsandbytes" and quantization.get("load_in_8bit"):
        return StoredLayout(_saved_int8(schemes["llm-int8"]), ".SCB")
    if method == "bitsandbytes" and quantization.get("load_in_4bit"):
        double = quantization.get("bnb_4bit_use_double_quant")
        return StoredLayout(schemes["nf4-double" if double else "nf4"], ".weight.absmax")
    if method == "gptq":
        return StoredLayout(gptq(bits, group), ".qweight")
    if method == "awq":
        return StoredLayout(awq(bits, group), ".qweight")
    if method == "fp8" and quantization.get("weight_block_size"):
        return StoredLayout(fp8_block(*quantization["weight_block_size"]), ".weight_scale_inv")
    if not method and "bits" in quantization and "group_size" in quantization:  # MLX names no method
        return StoredLayout(mlx(bits, group), ".scales")
    if method == "mxfp4":
        return StoredLayout(schemes["mxfp4"], "_blocks", stacked=True)
    return None


def _saved_int8(layout: Layout) -> Layout:
    """As saved, LLM.int8() adds one byte that names the weight's memory format (bitsandbytes ≥ 0.38)."""

    def saved(out: int, inp: int) -> tuple[Part, ...]:
        return (*layout(out, inp), Part(".weight_format", (), SAFETENSORS["U8"]))

    return saved
