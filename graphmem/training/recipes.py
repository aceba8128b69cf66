"""Precision recipes for training: each once, as data, with its source.

Bytes a parameter are for Adam(W): weights, gradients, an fp32 copy of the weights, both moments. Activations, buffers and the
allocator come on top, and `graphmem train` traces them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphmem.errors import GraphmemError, nearest

Fp8 = Literal["torchao", "te"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bytes each parameter takes in every part of the training state, and what the step does to get there."""

    key: str
    title: str
    #: Bytes a parameter with Adam(W).
    weights: int
    gradients: int
    #: fp32 copy of the weights kept by the optimizer (0: it updates the weights themselves).
    master: int
    #: Both Adam moments together.
    moments: int
    #: torch's name of the dtype that weights are in.
    dtype: str
    source: str
    #: dtype for `torch.autocast`; None: none.
    autocast: str | None = None
    #: `torch.amp.GradScaler`, without which fp16 gradients underflow.
    scaler: bool = False
    #: The optimizer keeps its states in fp32, whatever the weights are in.
    fp32_states: bool = False
    #: The optimizer it is about; None: any.
    optimizer: str | None = None
    #: Whose fp8 linear layers; None: no fp8.
    fp8: Fp8 | None = None

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.master + self.moments

    @property
    def fp32_gradients(self) -> bool:
        """Gradients are kept in an fp32 buffer beside 16-bit weights."""
        return self.gradients == 4 and self.weights == 2


_AMP = "torch.amp: weights, gradients and states stay fp32; autocast keeps 16-bit copies of the weights during forward"
_ZERO = "ZeRO (Rajbhandari et al. 2020) §3.1: 2 + 2 + K = 12"
_MEGATRON = "Megatron-LM distributed optimizer docs, bf16 with fp32 grads: 18"

RECIPES: tuple[Recipe, ...] = (
    Recipe("fp32", "fp32, or AMP autocast", 4, 4, 0, 8, "float32", "torch.amp: weights, gradients and states stay fp32"),
    Recipe("amp-bf16", "AMP, bf16", 4, 4, 0, 8, "float32", _AMP, autocast="bfloat16"),
    Recipe("amp-fp16", "AMP, fp16 with GradScaler", 4, 4, 0, 8, "float32", _AMP, autocast="float16", scaler=True),
    Recipe("mixed", "mixed, fp32 master", 2, 2, 4, 8, "bfloat16", _ZERO),
    Recipe("mixed-fp16", "mixed fp16, fp32 master", 2, 2, 4, 8, "float16", _ZERO),
    Recipe("mixed-fp32-grads", "mixed, fp32 gradients", 2, 4, 4, 8, "bfloat16", _MEGATRON),
    Recipe(
        "bf16-fp32-states", "bf16, fp32 states", 2, 2, 0, 8, "bfloat16",
        "bf16 model, AdamW states kept in fp32, no master copy", fp32_states=True,
    ),
    Recipe("bf16", "pure bf16/fp16", 2, 2, 0, 4, "bfloat16", "torch.optim.AdamW on a 16-bit model: states take the weights' dtype"),
    Recipe(
        "bf16-adam8bit", "bf16, 8-bit AdamW", 2, 2, 0, 2, "bfloat16",
        "bitsandbytes AdamW8bit (Dettmers et al. 2022): two bytes of states", optimizer="bitsandbytes.AdamW8bit",
    ),
    Recipe("fp16", "pure fp16", 2, 2, 0, 4, "float16", "torch.optim.AdamW on a 16-bit model: states take the weights' dtype"),
    Recipe(
        "fp8-torchao", "bf16 with fp8 matmuls (torchao)", 2, 2, 0, 4, "bfloat16",
        "torchao float8 training, dynamic tensorwise scaling: inputs and weights are cast in forward and again in backward; what is "
        "saved stays bf16", fp8="torchao",
    ),
    Recipe(
        "fp8-te", "fp32 weights, fp8 matmuls (Transformer Engine)", 4, 4, 0, 8, "float32",
        "Transformer Engine under bf16 autocast: fp8 copies of the weights and of the saved inputs, both ways round before Blackwell",
        autocast="bfloat16", fp8="te",
    ),
)  # fmt: skip

#: The rows of ``graphmem inspect``: the recipes that differ in bytes a parameter.
DIFFERENT_IN_BYTES = ("fp32", "mixed", "mixed-fp32-grads", "bf16-fp32-states", "bf16", "bf16-adam8bit")


def recipe_named(name: str) -> Recipe:
    """The recipe of that key.

    Raises:
        GraphmemError: there is none; with the nearest.
    """
    found = {recipe.key: recipe for recipe in RECIPES}
    if name not in found:
        raise GraphmemError(f"recipe {name!r}: {nearest(name, found)}")
    return found[name]
