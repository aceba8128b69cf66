"""Operations between ranks, as a trace has them: the group they run in, and what their tensors are for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from graphmem.timeline.events import Group, Kind
from graphmem.tracing.known import tensors_in

#: Namespaces of operators that work between ranks, or copy into and out of what goes between them.
_NAMESPACES = ("c10d.", "_c10d_functional.", "_c10d_functional_autograd.", "_dtensor.", "fsdp.")


def communicates(operator: str) -> bool:
    """Whether an operator is a collective, or one of FSDP2's copies around it."""
    return operator.startswith(_NAMESPACES)


def written(value: torch.ScriptObject) -> Any:
    """A process group as a `Group`; other objects of C++ (a reduction, an array of options) by their class."""
    from torch.distributed import ProcessGroup

    try:
        group = ProcessGroup.unbox(value)
    except (RuntimeError, TypeError):
        return type(value).__name__
    return Group(group.group_name, group.size())


def tensors_of(
    operator: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> Iterator[tuple[torch.Tensor, Kind]]:
    """What a collective's tensors turn out to be: buffers of communication, or parameters put together from all ranks."""
    if operator == "fsdp.split_with_sizes_copy.default":
        yield from ((tensor, "parameter") for tensor in kwargs["out"])
        return
    if operator == "fsdp.all_gather_copy_in.default":
        yield args[1], "communication"
        return
    yield from (
        (tensor, "communication")
        for tensor in [*tensors_in(args), *tensors_in(tuple(kwargs.values())), *tensors_in(result)]
    )
