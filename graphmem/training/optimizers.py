"""An optimizer by name → what makes it: PyTorch's own classes, run as they are; others by their documented state layout.

``"AdamW"``, ``"SGD(momentum=0.9)"``, ``"AdamW(fused=True)"``, ``"bitsandbytes.PagedAdamW8bit"``, and the names of transformers'
``TrainingArguments.optim`` (``"adamw_torch_fused"``).
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from graphmem.checkpoint import Basis
from graphmem.errors import GraphmemError, nearest
from graphmem.training.laid import Laid
from graphmem.training.layouts import LAYOUTS, Layout, Role

#: The Trainer keeps the states of embeddings in 32 bits where the others have 8.
_EMBEDDINGS = {"embeddings_32bit": True}
#: What transformers calls them (training_args.py, OptimizerNames).
_TRAINER: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_torch": ("AdamW", {}),
    "adamw_torch_fused": ("AdamW", {"fused": True}),
    "adamw_torch_4bit": ("torchao.AdamW4bit", {}),
    "adamw_torch_8bit": ("torchao.AdamW8bit", {}),
    "adamw_8bit": ("bitsandbytes.AdamW8bit", _EMBEDDINGS),
    "adamw_bnb_8bit": ("bitsandbytes.AdamW8bit", _EMBEDDINGS),
    "paged_adamw_32bit": ("bitsandbytes.PagedAdamW", {}),
    "paged_adamw": ("bitsandbytes.PagedAdamW", {}),
    "paged_adamw_8bit": ("bitsandbytes.PagedAdamW8bit", _EMBEDDINGS),
    "lion_32bit": ("bitsandbytes.Lion", {}),
    "lion_8bit": ("bitsandbytes.Lion8bit", _EMBEDDINGS),
    "paged_lion_32bit": ("bitsandbytes.PagedLion", {}),
    "paged_lion_8bit": ("bitsandbytes.PagedLion8bit", _EMBEDDINGS),
    "rmsprop_bnb_8bit": ("bitsandbytes.RMSprop8bit", _EMBEDDINGS),
    "galore_adamw": ("GaLoreAdamW", {}),
    "apollo_adamw": ("APOLLO", {}),
    "schedule_free_adamw": ("ScheduleFreeAdamW", {}),
    "schedule_free_sgd": ("ScheduleFreeSGD", {}),
}
#: Bare names that people mean these by.
_SHORT = {
    "adamw8bit": "bitsandbytes.AdamW8bit", "adam8bit": "bitsandbytes.Adam8bit", "pagedadamw": "bitsandbytes.PagedAdamW",
    "pagedadamw8bit": "bitsandbytes.PagedAdamW8bit", "pagedadam": "bitsandbytes.PagedAdam", "lion8bit": "bitsandbytes.Lion8bit",
    "pagedlion": "bitsandbytes.PagedLion", "adamw4bit": "torchao.AdamW4bit", "adamwfp8": "torchao.AdamWFp8",
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {"SGD": {"lr": 0.01}}


@dataclass(frozen=True)
class Chosen:
    """An optimizer to be made once the parameters are there. Called with them, or with the module too where it must tell them apart."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout | None = None

    @property
    def __name__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.name}({given})" if given else self.name

    @property
    def basis(self) -> Basis:
        """How its memory is known."""
        return "traced" if self.layout is None else "formula"

    def __call__(self, parameters: Any) -> Any:
        return self.of(parameters, {})

    def of_module(self, parameters: Any, module: nn.Module) -> Any:
        """With the module, of which linear layers' weights are told from embeddings and heads."""
        return self.of(parameters, roles_of(module))

    def of(self, parameters: Any, roles: Mapping[int, Role]) -> Any:
        """For parameters whose roles are known, by id."""
        if self.layout is not None:
            return Laid(parameters, self.layout, self.options, roles)
        cls: Any = getattr(torch.optim, self.name)
        options = {**_DEFAULTS.get(self.name, {}), **self.options}
        if self.name == "Muon":
            return _MuonAndAdamW(parameters, roles, options)
        if _mixed(parameters) and not options.get("fused"):
            options = {"foreach": False, **options}
        try:
            return cls(parameters, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise GraphmemError(f"optimizer {self.__name__}: torch.optim.{self.name} refuses ({error})") from error


def _mixed(parameters: Any) -> bool:
    """Whether only some are DTensors, as under tensor parallelism: PyTorch's foreach updates do not take both, so that whoever trains
    so has to switch them off."""
    return isinstance(parameters, list) and len({hasattr(parameter, "_local_tensor") for parameter in parameters}) > 1


class _MuonAndAdamW:
    """Muon for hidden matrices, AdamW for all else, as its documentation asks (torch/optim/_muon.py)."""

    def __init__(self, parameters: Sequence[Any], roles: Mapping[int, Role], options: Mapping[str, Any]) -> None:
        hidden = [p for p in parameters if p.dim() == 2 and (not roles or roles.get(id(p)) == "matrix")]
        taken = {id(p) for p in hidden}
        others = [p for p in parameters if id(p) not in taken]
        self._optimizers = [
            *([torch.optim.Muon(hidden, **options)] if hidden else []),
            *([torch.optim.AdamW(others, foreach=False if _mixed(others) else None)] if others else []),
        ]

    @property
    def state(self) -> dict[Any, Any]:
        return {key: value for optimizer in self._optimizers for key, value in optimizer.state.items()}

    @property
    def param_groups(self) -> list[Any]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()


def roles_of(module: nn.Module) -> dict[int, Role]:
    """By id of the parameter: weights of linear layers are matrices, but for the output head, which counts with the embeddings."""
    find = getattr(module, "get_output_embeddings", None)
    head = find() if find is not None else None
    roles: dict[int, Role] = {}
    for child in module.modules():
        weight = getattr(child, "weight", None)
        linear = isinstance(child, nn.Linear) or type(child).__name__ == "Conv1D"
        if linear and isinstance(weight, nn.Parameter) and weight.dim() == 2:
            roles[id(weight)] = "matrix"
    tables = [child.weight for child in module.modules() if isinstance(child, nn.Embedding)]
    return roles | {
        id(weight): "embedding" for weight in [*tables, getattr(head, "weight", None)] if weight is not None
    }


def known_names() -> list[str]:
    """Every optimizer that has a name here, but for transformers' names of them."""
    return [*_torch_classes(), *(layout.name for layout in LAYOUTS if layout.name != "AdamWFp32States")]


def _torch_classes() -> list[str]:
    return sorted(
        name
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and name not in ("Optimizer", "SparseAdam")
    )


def optimizer_named(text: str, device: str = "cuda") -> Chosen:
    """``"AdamW(fused=True)"`` → what makes it.

    Raises:
        GraphmemError: no such optimizer, an option it does not have, or one that cannot be.
    """
    name, options = _parsed(text)
    name = name.removeprefix("torch.optim.")
    if name.lower() in _TRAINER:
        name, given = _TRAINER[name.lower()]
        options = {**given, **options}
    name = _SHORT.get(name.lower(), name)
    if "paged" in options or ("paged" in name.lower() and not name.startswith("bitsandbytes.Paged")):
        paged = [layout.name for layout in LAYOUTS if "Paged" in layout.name]
        raise GraphmemError(f"optimizer {text!r}: paged states are bitsandbytes'; there are {', '.join(paged)}")
    by_name = {known.lower(): known for known in known_names()}
    if name == "AdamWFp32States":
        by_name[name.lower()] = name
    if name.lower() == "sparseadam":
        raise GraphmemError(
            "optimizer 'SparseAdam': takes sparse gradients, which have no size before the step; use Adam"
        )
    if name.lower() not in by_name:
        raise GraphmemError(f"optimizer {name!r}: {nearest(name, by_name.values())}")
    name = by_name[name.lower()]
    layout = next((one for one in LAYOUTS if one.name == name), None)
    allowed = (
        list(layout.options)
        if layout is not None
        else list(inspect.signature(getattr(torch.optim, name)).parameters)[1:]
    )
    for option in options:
        if option not in allowed:
            raise GraphmemError(
                f"optimizer {name} has no option {option!r}: {nearest(option, allowed) if allowed else 'it has none'}"
            )
    if options.get("fused") and device != "cuda":
        raise GraphmemError(
            f"optimizer {name}(fused=True): the fused kernels that graphmem knows are CUDA's; drop it for {device}"
        )
    if options.get("fused") and options.get("foreach"):
        raise GraphmemError(f"optimizer {name}: fused and foreach exclude each other; use one")
    chosen = Chosen(name, options, layout)
    if layout is None:
        chosen([nn.Parameter(torch.empty(2, 2, device="meta"))])  # what its constructor refuses is said now
    return chosen


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    """``"SGD(momentum=0.9)"`` → its name and keyword arguments, which are plain numbers and words."""
    name, opened, rest = text.partition("(")
    if not opened:
        return text.strip(), {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        return name.strip(), {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    except (SyntaxError, ValueError) as error:
        raise GraphmemError(f"optimizer {text!r}: write it as SGD(momentum=0.9), options as name=value") from error
