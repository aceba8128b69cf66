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
    #: How a router's choice of experts is taken to fall.
    routing: Routing = "balanced"
    #: None: as the model has it.
    attention: Attention | None = None
    #: Settings of the caching allocator, as in ``PYTORCH_CUDA_ALLOC_CONF``.
    alloc_conf: str = ""
    #: Trace repeated layers a few times only and replicate their events.
    fold: bool = True

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("step", self.step, get_args(StepKind)),
            ("routing", self.routing, get_args(Routing)),
            ("attention", self.attention, (None, *get_args(Attention))),
        ):
            if value not in allowed:
                raise GraphmemError(f"{name} {value!r}: use {', '.join(repr(choice) for choice in allowed if choice)}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise GraphmemError(f"steps {self.steps!r}: must be 1 or more")

    @property
    def trains(self) -> bool:
        return self.step == "train"
