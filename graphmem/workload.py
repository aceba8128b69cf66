"""Every assumption a step is traced under. It is echoed in the report, so that no default is silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from graphmem.errors import GraphmemError

StepKind = Literal["forward", "train"]
Routing = Literal["balanced", "worst"]
Attention = Literal["eager", "sdpa", "flash"]


@dataclass(frozen=True)
class Generation:
    """How tokens are generated: the cache's class, and what runs beside each other."""

    #: Tokens after the prompt's own; each is a forward of one token.
    decode_steps: int = 1
    #: ``dynamic``, ``static``, ``offloaded``, ``offloaded-static``, or one of `tracing.quantized_cache.NAMES`.
    cache: str = "dynamic"
    #: Length of a static cache.
    max_cache_len: int = 0
    beams: int = 1
    #: Samples of each prompt (``num_return_sequences``).
    samples: int = 1
    #: Whether prefill makes the logits of the last token only, as ``generate`` asks for where a model can.
    last_logits_only: bool = True

    @property
    def sequences(self) -> int:
        """Sequences for each prompt."""
        return max(self.beams, 1) * max(self.samples, 1) if self.beams == 1 else self.beams


@dataclass(frozen=True)
class Workload:
    """What one step does. Defaults are those of a plain training loop or forward call in PyTorch."""

    step: StepKind = "forward"
    #: Whether autograd records in a forward-only step (``torch.no_grad()`` if not).
    grad: bool = True
    #: torch's name of the dtype for `torch.autocast` around forward and loss; None: no autocast.
    autocast: str | None = None
    #: ``loss(output) -> scalar``; None: the output's own ``loss``, else the sum of its floating-point tensors.
    loss: Callable[[Any], Any] | None = None
    #: A class or any callable on the parameters; None: `torch.optim.AdamW`.
    optimizer: Callable[[Any], Any] | None = None
    #: Steps in a row: the first creates optimizer state, the second is the steady state.
    steps: int = 1
    #: Forward and backward passes before each optimizer step.
    accumulation: int = 1
    #: ``zero_grad(set_to_none=…)``: whether gradients are dropped after a step, or kept and filled with zeros.
    set_to_none: bool = True
    #: The largest norm of all gradients, for ``torch.nn.utils.clip_grad_norm_``; None: they are not clipped.
    clip_norm: float | None = None
    #: ``torch.amp.GradScaler`` around backward and the optimizer step.
    scaler: bool = False
    #: Whether the loop keeps the model's output in a variable during backward; transformers' Trainer does not.
    hold_output: bool = True
    #: Activations that autograd saves lie in host memory until backward needs them.
    offload: bool = False
    #: How a router's choice of experts is taken to fall.
    routing: Routing = "balanced"
    #: None: as the model has it.
    attention: Attention | None = None
    #: Settings of the caching allocator, as in ``PYTORCH_CUDA_ALLOC_CONF``.
    alloc_conf: str = ""
    #: Trace repeated layers a few times only and replicate their events.
    fold: bool = True
    #: Generate tokens instead of one forward; None: one forward.
    generation: Generation | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("step", self.step, get_args(StepKind)),
            ("routing", self.routing, get_args(Routing)),
            ("attention", self.attention, (None, *get_args(Attention))),
        ):
            if value not in allowed:
                raise GraphmemError(f"{name} {value!r}: use {', '.join(repr(choice) for choice in allowed if choice)}")
        for name, count in (("steps", self.steps), ("accumulation", self.accumulation)):
            if not isinstance(count, int) or count < 1:
                raise GraphmemError(f"{name} {count!r}: must be 1 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise GraphmemError(f"clip_norm {self.clip_norm!r}: must be more than 0")

    @property
    def trains(self) -> bool:
        return self.step == "train"
