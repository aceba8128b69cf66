"""A live (or meta) ``nn.Module`` → ModelSpec. Looks at the module's own interface; imports no torch itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphmem.checkpoint import Basis, ModelSpec, TensorSpec
from graphmem.dtypes import from_torch
from graphmem.errors import UnsupportedError

if TYPE_CHECKING:
    import torch


def spec_of_module(
    module: torch.nn.Module, basis: Basis = "read", config: Mapping[str, Any] | None = None
) -> ModelSpec:
    """Every parameter and buffer of ``module``, tied ones once.

    Args:
        module: on any device, meta included.
        config: what the report reads the cache layout from; by default ``module.config`` where there is one.

    Raises:
        UnsupportedError: a parameter has no shape yet (lazy modules) or a dtype that is not known.
    """
    owners = {name: module_of(module, name) for name, _ in module.named_modules()}
    tensors: list[TensorSpec] = []
    first_name: dict[int, str] = {}
    aliases: dict[str, list[str]] = {}
    for is_buffer, named in (
        (False, module.named_parameters(remove_duplicate=False)),
        (True, module.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in named:
            if id(tensor) in first_name:
                aliases.setdefault(first_name[id(tensor)], []).append(name)
                continue
            first_name[id(tensor)] = name
            owner = owners[name.rpartition(".")[0]]
            classes = tuple(cls.__name__ for cls in type(owner).__mro__)
            tensors.append(_tensor(name, tensor, is_buffer, classes))
    if config is None:
        config = _config_of(module)
    ties = tuple((owner, *names) for owner, names in aliases.items())
    return ModelSpec(tuple(tensors), config, basis=basis, ties=ties)


def module_of(module: torch.nn.Module, path: str) -> torch.nn.Module:
    """The submodule at ``path`` (the module itself for the empty path)."""
    return module.get_submodule(path) if path else module


def _tensor(name: str, tensor: torch.Tensor, is_buffer: bool, classes: tuple[str, ...]) -> TensorSpec:
    try:
        shape = tuple(tensor.shape)
    except RuntimeError as error:
        raise UnsupportedError(f"{name}: has no shape yet (a lazy module); run one forward first") from error
    try:
        dtype = from_torch(str(tensor.dtype))
    except KeyError as error:
        raise UnsupportedError(f"{name}: dtype {tensor.dtype} is not known; please report it") from error
    return TensorSpec(name, shape, dtype, is_buffer, tensor.requires_grad, classes)


def _config_of(module: torch.nn.Module) -> Mapping[str, Any]:
    """A transformers model's config as the dict its config.json would hold; empty for anything else."""
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    value = to_dict() if callable(to_dict) else {}
    return value if isinstance(value, dict) else {}
