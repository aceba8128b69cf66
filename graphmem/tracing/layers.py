"""Where a module keeps the layers that it repeats."""

from __future__ import annotations

from torch import nn


def stacks_of(module: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """(path, layers) of the outermost lists of two or more layers of one class; none, if there are none."""
    found: list[tuple[str, list[nn.Module]]] = []
    for path, child in module.named_modules():
        if not isinstance(child, nn.ModuleList | nn.Sequential) or any(
            path.startswith(f"{outer}.") for outer, _ in found
        ):
            continue
        layers = list(child)
        if (
            len(layers) > 1
            and any(True for layer in layers for _ in layer.parameters())
            and len({type(layer) for layer in layers}) == 1
        ):
            found.append((path, layers))
    return found
