"""``torch.compile``: what AOTAutograd's partitioner saves, and the buffers that compiled graphs need.

PyTorch's own AOTAutograd traces forward, loss and backward, and its min-cut partitioner decides what is saved and what is computed again:
that set is exact. Which results the compiled kernels write to memory follows from inductor's main rules: products, attention and
reductions write theirs; elementwise work is fused into whatever reads it, unless that is one of those or backward; an elementwise kernel
writes over an input that nobody reads again. Not modelled: graph breaks, CUDA graphs, autotuning's workspaces, and where
inductor's heuristics write something out that they could have fused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphmem.errors import GraphmemError
from graphmem.tracing.device import Device
from graphmem.tracing.failure import first_line
from graphmem.tracing.patching import replaced
from graphmem.tracing.presented import Presented
from graphmem.tracing.rules import REGISTRY

aten = torch.ops.aten
#: Run by libraries, or kernels of their own: they read and write whole tensors.
_EXTERN = (
    "mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_efficient_attention_backward", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_cudnn_attention_backward", "sort", "topk", "index_put", "scatter", "scatter_add", "cumsum", "_scaled_mm",
    "_unsafe_masked_index_put_accumulate", "embedding_dense_backward",
)  # fmt: skip
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
#: Inductor's thresholds: realize_reads_threshold, realize_acc_reads_threshold, realize_opcount_threshold (torch/_inductor/config.py).
_MOST_READS_SHARED, _MOST_READS, _MOST_OPERATIONS = 4, 8, 30
_REDUCTIONS = ("sum", "mean", "amax", "amin", "max", "min", "any", "all", "var_mean", "var", "argmax", "prod")


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor in memory: its geometry, and the buffer whose memory it takes over (-1: its own)."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    reuses: int = -1


@dataclass(frozen=True, slots=True)
class Step:
    """A kernel: the buffers it writes, those that nobody reads afterwards, and whether a library multiplies matrices in it."""

    writes: tuple[int, ...]
    frees: tuple[int, ...]
    product: bool


@dataclass(frozen=True)
class Program:
    """A graph as buffers and kernels. The first ``inputs`` buffers are given; ``outputs`` are (buffer, geometry) or None."""

    inputs: int
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    outputs: tuple[tuple[int, Buffer] | None, ...]

    def run(self, given: list[Any]) -> list[Any]:
        """Allocate and drop as the kernels do. ``given`` is emptied, so that it holds nothing up."""
        alive: dict[int, Any] = dict(enumerate(given))
        given.clear()
        for step in self.steps:
            if step.product:  # of no size: for the library's workspace
                with torch._C.DisableTorchFunction():
                    torch.mm(torch.empty(0, 1, device="meta"), torch.empty(1, 0, device="meta"))
            for number in step.writes:
                alive[number] = _made(self.buffers[number], alive)
            for number in step.frees:
                alive.pop(number, None)
        return [None if found is None else _seen(alive[found[0]], found[1]) for found in self.outputs]


def _made(buffer: Buffer, alive: dict[int, Any]) -> torch.Tensor:
    if buffer.reuses >= 0:
        return _seen(alive[buffer.reuses], buffer)
    with (
        torch._C.DisableTorchFunction()
    ):  # of the device: above, a tensor of meta is one that the code itself wants without memory
        return torch.empty_strided(buffer.size, buffer.stride, dtype=buffer.dtype, device="meta")


def _seen(tensor: Any, as_: Buffer) -> Any:
    """The buffer's memory in another geometry."""
    if not isinstance(tensor, torch.Tensor) or (tuple(tensor.shape), tensor.stride(), tensor.dtype) == (
        as_.size,
        as_.stride,
        as_.dtype,
    ):
        return tensor
    same = tensor if tensor.dtype == as_.dtype else tensor.view(-1).view(as_.dtype)
    return same.as_strided(as_.size, as_.stride)


# -- a graph as a program -------------------------------------------------------------------------------------------


def program_of(graph: torch.fx.Graph) -> Program:
    """Which nodes of a partitioned graph get a buffer, when, and until when."""
    nodes = list(graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    (output,) = [node for node in nodes if node.op == "output"]
    results = list(pytree.tree_leaves(output.args[0]))
    written = _written(nodes, results)
    numbers: dict[Any, int] = {node: number for number, node in enumerate(placeholders)}
    buffers = [_geometry(node) for node in placeholders]
    reads: dict[Any, tuple[int, ...]] = {}

    def sources(node: Any) -> tuple[int, ...]:
        """The buffers a node is read from: its own, that of what it views, or those of what is fused into it."""
        if node in numbers:
            return (numbers[node],)
        if node not in reads:
            reads[node] = tuple(dict.fromkeys(number for source in node.all_input_nodes for number in sources(source)))
        return reads[node]

    kernels: list[tuple[list[int], tuple[int, ...], bool, bool]] = []
    for node in nodes:
        if node not in written:
            continue
        needed = tuple(dict.fromkeys(number for source in node.all_input_nodes for number in sources(source)))
        numbers[node] = len(buffers)
        buffers.append(_geometry(node))
        kernels.append(([numbers[node]], needed, _is_extern(node), _name(node) in _PRODUCTS))
    outputs = [
        None if not isinstance(node, torch.fx.Node) else (_owner(node, numbers, sources), _geometry(node))
        for node in results
    ]
    kept = {found[0] for found in outputs if found is not None}
    last: dict[int, int] = {}
    for position, (_, needed, _, _) in enumerate(kernels):
        last |= dict.fromkeys(needed, position)
    steps = []
    for position, (writes, needed, extern, product) in enumerate(kernels):
        done = [number for number in needed if last[number] == position and number not in kept]
        if not extern:
            _reuse(buffers, writes[0], [number for number in done if number >= len(placeholders)])
        unread = [number for number in writes if number not in last and number not in kept]
        steps.append(Step(tuple(writes), (*done, *unread), product))
    return Program(len(placeholders), tuple(buffers), tuple(steps), tuple(outputs))


def _owner(node: Any, numbers: dict[Any, int], sources: Callable[[Any], tuple[int, ...]]) -> int:
    if node in numbers:
        return numbers[node]
    found = sources(node)
    return found[0] if found else 0


def _reuse(buffers: list[Buffer], number: int, done: Sequence[int]) -> None:
    """An elementwise kernel writes over an input of the same size that it is the last to read."""
    want = _nbytes(buffers[number])
    for other in done:
        if _nbytes(buffers[other]) == want and want:
            buffers[number] = Buffer(buffers[number].size, buffers[number].stride, buffers[number].dtype, other)
            return


def _nbytes(buffer: Buffer) -> int:
    count = 1
    for length in buffer.size:
        count *= length
    return count * buffer.dtype.itemsize


def _written(nodes: Sequence[Any], results: Sequence[Any]) -> set[Any]:
    """The nodes whose result is in memory: libraries' and reductions', what those read, what is returned."""
    found: set[Any] = set()

    def realize(node: Any) -> None:
        while node.op == "call_function" and _is_view(node) and node not in found:
            (node, *_) = node.all_input_nodes or [node]
            if node.op != "call_function":
                return
        if node.op == "call_function":
            found.add(node)

    for node in nodes:
        if node.op != "call_function":
            continue
        if _is_extern(node):
            if not _several(node):
                found.add(node)
            for source in node.all_input_nodes:
                realize(source)
        elif (_name(node) in _REDUCTIONS and not _several(node)) or _is_item(node):
            found.add(node)
    for node in results:
        if isinstance(node, torch.fx.Node):
            realize(node)
    _write_what_is_reused(nodes, found)
    return found


def _write_what_is_reused(nodes: Sequence[Any], found: set[Any]) -> None:
    """What several read, or what reads much itself, is written out in place of being computed again in every reader.

    As GraphLowering.run_node does it (torch/_inductor/graph.py, with ir.py's should_realize_on_reuse and has_exceeded_max_reads).
    """
    reads: dict[Any, frozenset[Any]] = {}
    inlined: dict[Any, frozenset[Any]] = {}

    def inputs(node: Any) -> list[Any]:
        """What a node is computed of, behind views."""
        result = []
        for source in node.all_input_nodes:
            behind = source
            while behind.op == "call_function" and behind not in found and _is_view(behind):
                behind = behind.all_input_nodes[0]
            result.append(behind)
        return result

    def heavy(node: Any, users: int) -> bool:
        count = len(reads[node])
        large = count + sum(_operations(other) for other in inlined[node]) > _MOST_OPERATIONS
        return (users > 1 and (count > _MOST_READS_SHARED or large)) or (count > 1 and (count > _MOST_READS or large))

    for node in nodes:
        if node.op != "call_function" or node in found or _several(node):
            continue
        if _is_view(node):
            base = inputs(node)[0] if node.all_input_nodes else None
            if base in reads and base not in found and heavy(base, len(node.users)):
                found.add(base)
            continue
        sources = inputs(node)
        reads[node] = frozenset().union(
            *(reads[source] if source in reads and source not in found else (source,) for source in sources)
        )
        inlined[node] = frozenset((node,)).union(
            *(inlined[source] for source in sources if source in inlined and source not in found)
        )
        if heavy(node, len(node.users)):
            found.add(node)


def _operations(node: Any) -> int:
    """About how many of inductor's operations a node is: itself and its constants."""
    return 1 + sum(isinstance(argument, int | float) and not isinstance(argument, bool) for argument in node.args)


def _is_extern(node: Any) -> bool:
    """A library's call or a kernel of its own. A scatter into a constant is elementwise (inductor's scatter_upon_const_tensor)."""
    name = _name(node)
    into = node.all_input_nodes[0] if node.all_input_nodes else None
    return name in _EXTERN and not (
        name == "scatter" and into is not None and _name(into) in ("full", "full_like", "zeros")
    )


def _is_item(node: Any) -> bool:
    """One of several results of a library's call."""
    return _is_part(node) and isinstance(node.meta.get("val"), torch.Tensor) and not _is_view(node.args[0])


def _is_part(node: Any) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def _several(node: Any) -> bool:
    return not isinstance(node.meta.get("val"), torch.Tensor)


def _name(node: Any) -> str:
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def _is_view(node: Any) -> bool:
    if _is_part(node):
        return _is_view(node.args[0])  # a part of what was split or unbound
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    return (
        any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)
        or _name(node) == "_unsafe_view"
    )


def _geometry(node: Any) -> Buffer:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return Buffer((), (), torch.int64)
    return Buffer(tuple(value.shape), tuple(value.stride()), value.dtype)


# -- a module as two programs ---------------------------------------------------------------------------------------


class Compiled(nn.Module):
    """A module whose forward and backward are two programs. Called like the module; returns the tensor that was made of its output."""

    def __init__(self, module: nn.Module, forward: Program, backward: Program, trained: Sequence[bool]) -> None:
        super().__init__()
        self.compiled, self._forward, self._backward, self._trained = module, forward, backward, tuple(trained)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One tensor."""
        state = [*self.compiled.parameters(), *self.compiled.buffers()]
        given = [*state, *(value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor))]
        return _Run.apply(self, *given)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compiled: Compiled, *given: Any) -> torch.Tensor:
        result, *saved = compiled._forward.run(list(given))
        ctx.compiled, ctx.count = compiled, len(given)
        ctx.save_for_backward(*saved)  # where hooks see it: checkpointing, offloading
        return result.detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        saved = [*ctx.saved_tensors, grad]
        ctx.maybe_clear_saved_tensors()  # as AOTAutograd's runtime does: dropped one by one as backward's kernels are through
        found = ctx.compiled._backward.run(saved)
        found += [None] * (ctx.count - len(found))
        return (None, *found)


def compiled(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], finish: Callable[[Any], torch.Tensor], device: Device,
    precision: Any = None,
) -> Compiled:  # fmt: skip
    """The module compiled for one geometry of inputs, with what is made of its output (a loss).

    Args:
        finish: output → one tensor, compiled too.
        precision: makes the autocast region around both, once there is a device to find.

    Raises:
        GraphmemError: AOTAutograd cannot trace it.
    """
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    graphs: list[torch.fx.GraphModule] = []
    flat, spec = pytree.tree_flatten((args, kwargs))
    positions = [position for position, value in enumerate(flat) if isinstance(value, torch.Tensor)]

    class Finished(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            values = list(flat)
            for position, tensor in zip(positions, tensors, strict=True):
                values[position] = tensor
            inputs, named = pytree.tree_unflatten(values, spec)
            presented = Presented(device, REGISTRY, lambda storage: None, lambda: None, lambda stream: None)
            with _as_compiling(), presented.patched(), presented, (precision or contextlib.nullcontext)():
                return finish(self.module(*inputs, **named))

    def take(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        (output,) = [node for node in graph.graph.nodes if node.op == "output"]
        results = pytree.tree_leaves(output.args[0])

        def run(values: list[Any]) -> list[Any]:
            """What it returns, without running it."""
            values.clear()
            return [_made(_geometry(node), {}) if isinstance(node, torch.fx.Node) else node for node in results]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    whole = Finished()
    state = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}

    def run(values: list[torch.Tensor], tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(whole, dict(zip(state, values, strict=True)), tuple(tensors))

    partition: Any = min_cut_rematerialization_partition
    if device.torch >= (2, 8):  # parameters and buffers are there anyway, so to keep them costs nothing (PR #148922)
        partition = partial(partition, static_lifetime_input_indices=list(range(len(state))))
    traced = aot_function(
        run, fw_compiler=take, bw_compiler=take, partition_fn=partition, decompositions=select_decomp_table()
    )  # fmt: skip
    try:
        inputs = [
            flat[position].detach().to("meta").requires_grad_(flat[position].requires_grad) for position in positions
        ]
        traced(list(state.values()), inputs).sum().backward()
    except GraphmemError:
        raise
    except Exception as error:
        raise GraphmemError(
            f"--compile: AOTAutograd cannot trace {type(module).__name__} ({first_line(error)})"
        ) from error
    forward, backward = (program_of(graph.graph) for graph in graphs)
    return Compiled(module, forward, backward, [parameter.requires_grad for parameter in module.parameters()])


@contextlib.contextmanager
def _as_compiling() -> Iterator[None]:
    """Models take the way they take under `torch.compile`; the loss takes operators that AOTAutograd can differentiate on meta."""
    functional = nn.functional
    with (
        replaced(torch.compiler, "_is_compiling_flag", True),
        replaced(functional, "cross_entropy", _cross_entropy),
        replaced(functional, "nll_loss", _nll_loss),
    ):
        yield


_REDUCTION = {"none": 0, "mean": 1, "sum": 2}


def _nll_loss(
    input: torch.Tensor, target: torch.Tensor, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean",
) -> torch.Tensor:  # fmt: skip
    """``aten::nll_loss`` has no derivative where functional tensors lie on meta; what it is made of has."""
    return aten.nll_loss_forward(input, target, weight, _REDUCTION[reduction], ignore_index)[0]


def _cross_entropy(
    input: torch.Tensor, target: torch.Tensor, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    if label_smoothing or target.is_floating_point():
        raise GraphmemError(
            "--compile: cross-entropy with label smoothing or class probabilities is not modelled; drop --compile"
        )
    flat = input if input.dim() == 2 else input.movedim(1, -1).reshape(-1, input.shape[1])
    return _nll_loss(
        torch.log_softmax(flat, -1), target.reshape(-1), weight, ignore_index=ignore_index, reduction=reduction
    )
