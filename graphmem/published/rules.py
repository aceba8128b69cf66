"""Rules of thumb for memory, as published. Bytes, unless said; s, b, h, a, L: tokens, batch, width, heads, layers."""

from __future__ import annotations

from dataclasses import dataclass


def mixed_precision_adam(parameters: int) -> int:
    """16Ψ: fp16 weights 2, gradients 2, and K = 12 for fp32 weights and both moments (Rajbhandari et al. 2020, ZeRO, section 3.1)."""
    return 16 * parameters


def training_as_inferences(parameters: int, bytes_each: int) -> int:
    """Training takes about four times what inference does ("GPU memory for AI models"): weights, gradients, two moments."""
    return 4 * parameters * bytes_each


def loaded(parameters: int, bits: float) -> int:
    """M = P × 4 B / (32 / Q) × 1.2: weights at Q bits and 20 % on top ("GPU memory for AI models"; also substratus.ai)."""
    return round(parameters * 4 / (32 / bits) * 1.2)


def loaded_divided_twice(parameters: int, bits: int) -> int:
    """The fp8 example of the same article divides by four once more: 70 B parameters in 21 GB, where its own formula gives 84 GB."""
    return loaded(parameters, bits) // 4


def training_activations(s: int, b: int, h: int, a: int, layers: int) -> int:
    """L · (34·s·b·h + 5·a·s²·b), 16 bit, attention scores stored (Korthikanti et al. 2022, section 4.1)."""
    return layers * (34 * s * b * h + 5 * a * s * s * b)


def gpt2_activations(s: int, b: int, h: int, layers: int) -> int:
    """12 numbers a token, layer and width, in 16 bit (Rajbhandari et al. 2020, ZeRO, section 3.2, footnote 3); attention scores left out."""
    return 2 * 12 * s * b * h * layers


def inference_activations(s: int, b: int, h: int, a: int) -> int:
    """32·s·b·h + 4·a·s²·b, one layer at a time, 16 bit ("Calculate model memory consumption in training and inference")."""
    return 32 * s * b * h + 4 * a * s * s * b


@dataclass(frozen=True)
class Stages:
    """accelerate's estimate for Adam: bytes at each stage of a step."""

    model: int
    gradients: int
    backward: int
    step: int

    @property
    def peak(self) -> int:
        return max(self.model, self.gradients, self.backward, self.step)


def accelerate_stages(nbytes: int, dtype: str) -> Stages | None:
    """``accelerate estimate-memory`` (1.15, commands/estimate.py, estimate_training_usage) of a model of ``nbytes`` in ``dtype``.

    None for int8 and int4, which it does not train.
    """
    if dtype == "float32":
        return Stages(nbytes, nbytes, 2 * nbytes, 4 * nbytes)
    if dtype in ("float16", "bfloat16"):
        return Stages(nbytes, nbytes + nbytes // 2, 2 * nbytes, 2 * nbytes)
    return None
