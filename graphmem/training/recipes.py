"""Precision recipes for training with Adam(W): bytes a parameter for weights, gradients and optimizer states.

Each recipe once, as data, with its source. Activations, buffers and the allocator come on top.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bytes each parameter takes in every part of the training state."""

    key: str
    title: str
    weights: int
    gradients: int
    #: fp32 copy of the weights kept by the optimizer (0: it updates the weights themselves).
    master: int
    #: Both Adam moments together.
    moments: int
    source: str

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.master + self.moments


RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "fp32",
        "fp32, or AMP autocast",
        4,
        4,
        0,
        8,
        "torch.amp: weights, gradients and states stay fp32",
    ),
    Recipe("mixed", "mixed, fp32 master", 2, 2, 4, 8, "ZeRO (Rajbhandari et al. 2020) §3.1: 2 + 2 + K = 12"),
    Recipe(
        "mixed-fp32-grads",
        "mixed, fp32 gradients",
        2,
        4,
        4,
        8,
        "Megatron-LM distributed optimizer docs, bf16 with fp32 grads: 18",
    ),
    Recipe(
        "bf16-fp32-states",
        "bf16, fp32 states",
        2,
        2,
        0,
        8,
        "bf16 model, AdamW states kept in fp32, no master copy",
    ),
    Recipe("bf16", "pure bf16/fp16", 2, 2, 0, 4, "torch.optim.AdamW on a 16-bit model: states take the weights' dtype"),
    Recipe(
        "bf16-adam8bit",
        "bf16, 8-bit AdamW",
        2,
        2,
        0,
        2,
        "bitsandbytes AdamW8bit (Dettmers et al. 2022): two bytes of states",
    ),
)
