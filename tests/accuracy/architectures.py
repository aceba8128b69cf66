"""Every class of every Auto mapping of transformers, built tiny from its config's defaults, with inputs that it runs on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from tests.accuracy.network import mean_square
from tests.accuracy.tiny_changes import CHANGES, GIVEN, SCALES
from tests.accuracy.tiny_config import tiny_config
from tests.accuracy.tiny_inputs import Case, make
from tests.accuracy.tiny_labels import labels_for
from tests.accuracy.tiny_overrides import INPUTS
from tests.accuracy.unrunnable import UNRUNNABLE


@dataclass(frozen=True)
class Architecture:
    """A model class, and the first Auto mapping and model type that list it."""

    name: str
    model_type: str
    auto: str


@dataclass(frozen=True)
class Unrunnable:
    """A class that does not run here, and what it said."""

    name: str
    reason: str


def architectures() -> list[Architecture]:
    """By class name, each once."""
    found: dict[str, Architecture] = {}
    for name, model_type, auto in _listed():
        found.setdefault(name, Architecture(name, model_type, auto))
    return [found[name] for name in sorted(found)]


def unrunnable() -> list[Unrunnable]:
    """The classes that do not run with the packages of the `dev` extra on a CPU."""
    return [Unrunnable(name, reason) for name, reason in sorted(UNRUNNABLE.items())]


def runnable() -> list[Architecture]:
    """All the others."""
    return [arch for arch in architectures() if arch.name not in UNRUNNABLE]


def build(arch: Architecture) -> nn.Module:
    """The tiny model, in eval mode, with the same numbers in every call. Under `torch.device("meta")` it is built there."""
    kind = model_class(arch)
    config = tiny_config(
        kind.config_class,
        given=_said(GIVEN, arch),
        scale=SCALES.get(arch.name, SCALES.get(kind.config_class.model_type)),
        changes=_said(CHANGES, arch),
    )
    if "Classification" in arch.name and getattr(text := config.get_text_config(), "pad_token_id", 0) is None:
        text.pad_token_id = 0  # Without it a batch cannot be classified at its last token.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind(config).eval()
    # Some classes name the CPU, or no device, when they make a parameter.
    return module.to("meta") if torch.get_default_device().type == "meta" else module


def inputs(arch: Architecture, module: nn.Module, *, labels: bool = False) -> dict[str, Any]:
    """Keyword arguments of `forward`, on the CPU, the same in every call; with `labels`, the targets of its own loss."""
    runnable = _on_cpu(arch) if any(parameter.is_meta for parameter in module.parameters()) else module
    case = Case(runnable)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        found = make(case, _said(INPUTS, arch))
        return found | labels_for(case, found) if labels else found


def loss(outputs: Any) -> Tensor:
    """The model's own loss, or else the mean square of every output that has a gradient."""
    own = outputs.get("loss") if isinstance(outputs, Mapping) else None
    return own.sum() if own is not None and own.requires_grad else mean_square(outputs)


def model_class(arch: Architecture) -> type[nn.Module]:
    return getattr(transformers, arch.name)


def _listed() -> Iterator[tuple[str, str, str]]:
    for auto, mapping in vars(modeling_auto).items():
        if auto.startswith("MODEL_") and auto.endswith("_MAPPING_NAMES"):
            for model_type, names in mapping.items():
                for name in (names,) if isinstance(names, str) else names:
                    yield name, model_type, auto


@cache
def _on_cpu(arch: Architecture) -> nn.Module:
    with torch.device("cpu"):
        return build(arch)


def _said(table: Mapping[str, Mapping[str, Any]], arch: Architecture) -> dict[str, Any]:
    """What the table says of the class's config, and on top what it says of the class."""
    return {**table.get(model_class(arch).config_class.model_type, {}), **table.get(arch.name, {})}
