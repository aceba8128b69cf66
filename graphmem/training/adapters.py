"""Adapters by the real peft library, on the meta device: which parameters train, and what the forward does besides."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from graphmem.errors import GraphmemError, MissingExtraError, nearest

Method = Literal["lora", "dora", "ia3", "prompt", "prefix", "p-tuning"]


@dataclass(frozen=True)
class Adapter:
    """What peft is asked for. ``target_modules``: ends of module names, or ``all-linear``; empty: what peft has for the model."""

    method: Method = "lora"
    rank: int = 8
    #: None: the rank, so that the scaling is 1.
    alpha: int | None = None
    target_modules: tuple[str, ...] = ()
    dropout: float = 0.0
    rslora: bool = False
    #: Virtual tokens of prompt, prefix and p-tuning.
    virtual_tokens: int = 20

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise GraphmemError(f"adapter {self.method!r}: {nearest(str(self.method), get_args(Method))}")
        if self.rank < 1:
            raise GraphmemError(f"rank {self.rank}: must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise GraphmemError(f"adapter dropout {self.dropout}: must be at least 0 and less than 1")
        if self.virtual_tokens < 1:
            raise GraphmemError(f"virtual tokens {self.virtual_tokens}: must be 1 or more")
        if self.rslora and self.method not in ("lora", "dora"):
            raise GraphmemError(f"rslora scales LoRA's product; adapter {self.method!r} has none")
        if self.target_modules and self.method not in ("lora", "dora", "ia3"):
            raise GraphmemError(f"target modules are for lora, dora and ia3; {self.method} adds virtual tokens")

    @property
    def words(self) -> str:
        """For people and reports."""
        where = ", ".join(self.target_modules) or "peft's own choice of modules"
        if self.method in ("lora", "dora"):
            name = "rsLoRA" if self.rslora else {"lora": "LoRA", "dora": "DoRA"}[self.method]
            return f"{name} r={self.rank} alpha={self.alpha or self.rank} dropout={self.dropout:g} on {where}"
        if self.method == "ia3":
            return f"IA3 on {where}"
        return f"{self.method}, {self.virtual_tokens} virtual tokens"


def adapter_of(method: str | None, target_modules: str | Sequence[str] | None, **given: Any) -> Adapter | None:
    """The adapter that options describe, None where no method is given; options that are None are left at their defaults.

    Raises:
        GraphmemError: options without a method, or that cannot be.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if target_modules is not None:
        names = target_modules.split(",") if isinstance(target_modules, str) else list(target_modules)
        chosen["target_modules"] = tuple(name.strip() for name in names)
    if method is None:
        if chosen:
            raise GraphmemError(
                f"{', '.join(name.replace('_', ' ') for name in chosen)}: of an adapter; add --adapter lora"
            )
        return None
    if "rank" in chosen and method not in ("lora", "dora"):
        raise GraphmemError(f"rank: is LoRA's and DoRA's; adapter {method!r} has none")
    if "virtual_tokens" in chosen and method in ("lora", "dora", "ia3"):
        raise GraphmemError(f"virtual tokens: are those of prompt, prefix and p-tuning; adapter {method!r} has none")
    return Adapter(method, **chosen)  # type: ignore[arg-type]


def adapted(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The model with its parameters frozen and the adapter's added.

    Raises:
        MissingExtraError: peft is not installed.
        GraphmemError: the target modules match nothing, or peft refuses.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("adapters are made by the peft library", "torch") from error
    config = _config(model, adapter, peft)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = peft.get_peft_model(model, config)
    except (ValueError, AttributeError, KeyError, TypeError, RuntimeError, NotImplementedError) as error:
        text = str(error)
        if "not found in the base model" in text or "No modules were targeted" in text:
            raise GraphmemError(
                f"target modules {', '.join(adapter.target_modules)}: match no module of {type(model).__name__}; "
                f"its linear layers are called {', '.join(_linear_names(model))}"
            ) from error
        if "Please specify `target_modules`" in text or "No `target_modules` passed" in text:
            raise GraphmemError(
                f"adapter {adapter.method}: peft does not know where to put it in {type(model).__name__}; name the layers "
                f"with --target-modules {','.join(_linear_names(model)[:4])} (or all-linear)"
            ) from error
        raise GraphmemError(
            f"adapter {adapter.method}: peft refuses ({text.splitlines()[0] if text else error!r})"
        ) from error
    found.train(model.training)
    return found


def _config(model: nn.Module, adapter: Adapter, peft: Any) -> Any:
    task = "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None
    targets: str | Sequence[str] | None = list(adapter.target_modules) or None
    if adapter.target_modules == ("all-linear",):
        targets = "all-linear"
    if adapter.method in ("lora", "dora"):
        return peft.LoraConfig(
            r=adapter.rank, lora_alpha=adapter.alpha or adapter.rank, target_modules=targets, lora_dropout=adapter.dropout,
            use_rslora=adapter.rslora, use_dora=adapter.method == "dora", task_type=task,
        )  # fmt: skip
    if adapter.method == "ia3":
        feedforward: list[str] | None = [] if targets is not None else None
        return peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type=task)
    kind = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig, "p-tuning": peft.PromptEncoderConfig}
    return kind[adapter.method](num_virtual_tokens=adapter.virtual_tokens, task_type="CAUSAL_LM")


def _linear_names(model: nn.Module) -> list[str]:
    names: dict[str, None] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            names.setdefault(path.rpartition(".")[2])
    return list(names) or ["(none)"]
