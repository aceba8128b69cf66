"""What a step sends between ranks, counted from the collectives in its trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from graphmem.dtypes import from_torch
from graphmem.timeline.events import Group, Op, Phase, Value, refs_in
from graphmem.tracing.trace import Trace

#: Bytes that a rank sends of a payload of n ranks: ring algorithms (Thakur et al. 2005; NCCL's documentation, "Performance").
_SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "send": lambda n: 1.0,
}
#: Operator → what it is, and whether its payload is its result (else what goes in).
_COLLECTIVES: dict[str, tuple[str, bool]] = {
    "c10d._allgather_base_": ("all-gather", True), "c10d.allgather_": ("all-gather", True),
    "_c10d_functional.all_gather_into_tensor": ("all-gather", True), "c10d._reduce_scatter_base_": ("reduce-scatter", False),
    "_c10d_functional.reduce_scatter_tensor": ("reduce-scatter", False), "c10d.allreduce_": ("all-reduce", True),
    "_c10d_functional.all_reduce": ("all-reduce", True), "_c10d_functional.all_reduce_": ("all-reduce", True),
    "_c10d_functional.all_to_all_single": ("all-to-all", True), "c10d.alltoall_base_": ("all-to-all", True),
    "_dtensor.shard_dim_alltoall": ("all-to-all", True), "c10d.broadcast_": ("broadcast", True), "c10d.send": ("send", False),
}  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """Collectives of one kind in one group, in one part of a step. Bytes."""

    what: str
    group: str
    ranks: int
    phase: Phase
    calls: int
    #: Of the whole tensors, as the ZeRO paper counts: an all-gather of a model is the model.
    payload: int
    #: What a rank sends.
    sent: int


def communication(trace: Trace, names: Mapping[str, tuple[str, int]]) -> list[Sent]:
    """Of the last step traced. ``names``: of a process group → its name for people, and how many ranks it has."""
    last = max((op.step for op in trace.ops), default=0)
    found: dict[tuple[str, str, int, Phase], list[int]] = {}
    for op in trace.ops:
        if op.step != last:
            continue
        for what, group, ranks, payload in _collective(op, trace.values, names):
            key = (what, group, ranks, op.phase)
            calls = found.setdefault(key, [0, 0])
            calls[0] += 1
            calls[1] += payload
    return [
        Sent(*key, calls, payload, math.ceil(payload * _SENT[key[0]](key[2])))
        for key, (calls, payload) in found.items()
    ]


def _collective(
    op: Op, values: tuple[Value, ...], names: Mapping[str, tuple[str, int]]
) -> Iterator[tuple[str, str, int, int]]:
    kind = _COLLECTIVES.get(op.name.rpartition(".")[0])
    if kind is None:
        return
    what, of_result = kind
    given = next((argument for argument in op.args if isinstance(argument, Group)), None)
    name = (
        given.name
        if given is not None
        else next((a for a in reversed(op.args) if isinstance(a, str) and a in names), "")
    )
    group, ranks = names.get(name, (name, given.size if given is not None else 1))
    payload = _payload(op, values, of_result)
    if payload and ranks > 1:
        yield what, group, ranks, payload


def _payload(op: Op, values: tuple[Value, ...], of_result: bool) -> int:
    in_place = op.name.startswith("c10d.")
    # c10d's operators have the tensor they write to first, then the one they read.
    refs = (
        refs_in(op.args[0 if of_result or len(refs_in(op.args)) == 1 else 1])
        if in_place
        else (list(op.outputs) if of_result else refs_in(op.args))
    )
    return sum(math.prod(values[ref].shape) * from_torch(values[ref].dtype).nbytes(1) for ref in refs)
