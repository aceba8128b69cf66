"""A Trace as a `torch.fx.Graph` and as a networkx data flow."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import networkx
import torch
import torch.fx

from graphmem.timeline.events import Op, ValueRef, refs_in

if TYPE_CHECKING:
    from graphmem.tracing.trace import Trace


def _block_events(trace: Trace) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    allocated: dict[int, list[int]] = {}
    freed: dict[int, list[int]] = {}
    for alloc, block, op in trace.events:
        if op is not None:
            (allocated if alloc else freed).setdefault(op, []).append(block)
    return allocated, freed


def _tensor_meta(trace: Trace, outputs: tuple[int, ...]) -> dict[str, Any]:
    values = [trace.values[index] for index in outputs]
    one = len(values) == 1

    def each(items: list[Any]) -> Any:
        return items[0] if one else tuple(items)

    return {
        "shape": each([value.shape for value in values]),
        "stride": each([value.stride for value in values]),
        "dtype": each([getattr(torch, value.dtype) for value in values]),
    }


def fx_graph(trace: Trace) -> torch.fx.Graph:
    """One ``call_function`` node an operation, placeholders for what was there before.

    ``node.meta`` has ``shape``, ``stride``, ``dtype`` (a tuple of each where there are several outputs), ``module``,
    ``nn_module_stack``, ``phase``, ``step``, ``line``, ``node`` (the backward function), ``allocated`` and ``freed`` (indices in ``trace.blocks``), and ``saved``: the
    nodes whose results autograd keeps for this operation's backward.
    """
    graph = torch.fx.Graph()
    at: dict[int, Any] = {}
    for name, index in trace.placeholders.items():
        node = graph.placeholder(_identifier(name))
        node.meta |= _tensor_meta(trace, (index,)) | {"name": name, "module": name.rpartition(".")[0]}
        at[index] = node
    allocated, freed = _block_events(trace)

    def argument(value: Any) -> Any:
        if isinstance(value, ValueRef):
            return at.get(value.index, _HOST)
        if isinstance(value, list | tuple):
            return type(value)([argument(item) for item in value])
        return value

    for index, op in enumerate(trace.ops):
        target = overload(op.name)
        node = graph.call_function(target, argument(op.args), {k: argument(v) for k, v in op.kwargs.items()})
        node.meta |= _tensor_meta(trace, op.outputs) if op.outputs else {}
        node.meta |= _place(trace, op)
        node.meta |= {"allocated": allocated.get(index, []), "freed": freed.get(index, [])}
        if len(op.outputs) == 1:
            at[op.outputs[0]] = node
        for position, value in enumerate(op.outputs if len(op.outputs) > 1 else ()):
            at[value] = part = graph.call_function(operator.getitem, (node, position))
            part.meta |= _tensor_meta(trace, (value,)) | _place(trace, op) | {"allocated": [], "freed": [], "saved": []}
        node.meta["saved"] = [at[value] for value in op.saved if value in at]
    graph.output(None)
    return graph


def _place(trace: Trace, op: Op) -> dict[str, Any]:
    """Where an operation comes from; ``nn_module_stack`` has path → class, outermost first."""
    parts = op.module.split(".") if op.module else []
    paths = [".".join(parts[:length]) for length in range(len(parts) + 1)]
    stack = {path: trace.modules[path] for path in paths if path in trace.modules}
    return {
        "module": op.module, "nn_module_stack": stack, "phase": op.phase, "step": op.step, "line": op.line, "node": op.node,
    }  # fmt: skip


#: Stands for a tensor in host memory, which the device's graph does not follow.
_HOST = "host tensor"


def overload(name: str) -> Any:
    """``aten.mm.default`` → the overload it names."""
    namespace, packet, which = name.rsplit(".", 2)
    return getattr(getattr(getattr(torch.ops, namespace), packet), which)


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def data_flow(trace: Trace) -> networkx.DiGraph:
    """Nodes are operation indices and placeholder names, with their name, module, phase and bytes; edges carry a tensor's bytes."""
    flow = networkx.DiGraph()
    producer: dict[int, Any] = {}
    for name, index in trace.placeholders.items():
        block = trace.values[index].block
        flow.add_node(
            name,
            name=name,
            module=name.rpartition(".")[0],
            phase="start",
            nbytes=trace.blocks[block].nbytes if block is not None else 0,
        )
        producer[index] = name
    allocated, _ = _block_events(trace)
    for index, op in enumerate(trace.ops):
        nbytes = sum(trace.blocks[block].nbytes for block in allocated.get(index, []))
        flow.add_node(index, name=op.name, module=op.module, phase=op.phase, line=op.line, nbytes=nbytes)
        for value in refs_in((op.args, tuple(op.kwargs.values()))):
            if value in producer:
                block = trace.values[value].block
                flow.add_edge(producer[value], index, nbytes=trace.blocks[block].nbytes if block is not None else 0)
        for value in op.outputs:
            producer[value] = index
    return flow
