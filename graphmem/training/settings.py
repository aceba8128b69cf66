"""Everything a user can choose about a training run, in one frozen value; what cannot be is refused at the door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from graphmem.errors import GraphmemError, nearest
from graphmem.training.recipes import Recipe, recipe_named

if TYPE_CHECKING:
    from graphmem.training.adapters import Adapter

LoadIn = Literal["nf4", "nf4-double", "int8"]
LossHead = Literal["full", "chunked", "fused"]


@dataclass(frozen=True)
class Training:
    """The settings of `graphmem train`. Defaults are those of transformers' Trainer on a model in fp32, but for the batch size."""

    #: A key of `RECIPES`; None: weights as they are, states as the optimizer makes them.
    recipe: str | None = None
    #: A name with options (``"SGD(momentum=0.9)"``), a class of `torch.optim`, or any callable on the parameters.
    optimizer: str | Callable[[Any], Any] | None = None
    #: The optimizer steps inside backward, a parameter at a time.
    optimizer_in_backward: bool = False
    accumulation: int = 1
    set_to_none: bool = True
    clip_norm: float | None = None
    #: Gradients and master weights of the mixed recipes lie in one fp32 buffer each.
    flat_buffers: bool = False
    #: ``model``, ``layers``, ``every-4``, ``sqrt``, ``selective``; None: everything is saved.
    checkpointing: str | None = None
    #: Operators that ``selective`` saves (``aten.mm``).
    save: tuple[str, ...] = ()
    #: Saved activations go to host memory.
    offload: bool = False
    adapter: Adapter | None = None
    #: One of `LoadIn`: frozen weights quantized.
    load_in: str | None = None
    #: One of `LossHead`: all logits, or linear layer and cross-entropy in chunks.
    loss_head: str = "full"
    compile: bool = False
    steps: int = 2

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("load-in", self.load_in, get_args(LoadIn)),
            ("loss", self.loss_head, get_args(LossHead)),
        ):
            if value is not None and value not in allowed:
                raise GraphmemError(f"{name} {value!r}: {nearest(str(value), allowed)}")
        recipe = self.precision
        if self.save and self.checkpointing != "selective":
            raise GraphmemError("save: the operators that selective checkpointing keeps; add --checkpointing selective")
        if self.load_in and self.adapter is not None and self.adapter.method == "dora":
            raise GraphmemError(f"load-in {self.load_in} and dora together are not modelled; use --adapter lora")
        if self.load_in and self.adapter is None:
            raise GraphmemError(
                f"load-in {self.load_in}: quantized weights are not trained; add an adapter (--adapter lora)"
            )
        if self.load_in and recipe is not None and (recipe.master or recipe.fp8):
            raise GraphmemError(
                f"load-in {self.load_in} and recipe {recipe.key!r} exclude each other: quantized weights have no {'fp8 products' if recipe.fp8 else 'master copy'}"
            )
        if self.optimizer_in_backward:
            self._check_in_backward(recipe)
        if self.flat_buffers and (recipe is None or not recipe.master):
            raise GraphmemError("flat buffers: are those of a recipe with fp32 master weights; add --recipe mixed")
        if recipe is not None and recipe.optimizer and self.optimizer is not None:
            raise GraphmemError(
                f"recipe {recipe.key!r} is about {recipe.optimizer}; drop --optimizer, or use --recipe bf16"
            )
        if recipe is not None and recipe.fp32_states and self.optimizer not in (None, "AdamW"):
            raise GraphmemError(
                f"recipe {recipe.key!r} is about AdamW; use --recipe bf16 with --optimizer {self.optimizer}"
            )
        for name, given in (
            ("checkpointing", self.checkpointing),
            ("offload", self.offload),
            ("load-in", self.load_in),
        ):
            if self.compile and given:
                raise GraphmemError(
                    f"compile and {name} together are not modelled: drop one; compiled graphs choose themselves what they recompute"
                )
        if self.steps < 1:
            raise GraphmemError(f"steps {self.steps}: must be 1 or more")

    def _check_in_backward(self, recipe: Recipe | None) -> None:
        others = {
            "accumulation": self.accumulation > 1, "clip_norm": self.clip_norm is not None, "a scaler": bool(recipe and recipe.scaler),
            "master weights": bool(recipe and recipe.master),
        }  # fmt: skip
        for name, given in others.items():
            if given:
                raise GraphmemError(
                    f"optimizer in backward and {name} exclude each other: no gradient lives until the end of backward"
                )

    @property
    def precision(self) -> Recipe | None:
        """The recipe itself."""
        return recipe_named(self.recipe) if self.recipe is not None else None
