"""A Trace of small modules, against sizes worked out by hand; and what tracing leaves behind: nothing."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from pathlib import Path

import networkx
import pytest
import torch
import torch.fx
from torch import nn
from torch.nn import functional
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import _len_torch_dispatch_stack
from torch.utils.checkpoint import checkpoint

import graphmem
from graphmem.tracing import presented

F32 = 4


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256, bias=False), nn.Linear(256, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.relu(self.up(x)))


def traced(step: str = "train", **options: object) -> graphmem.Trace:
    return graphmem.trace(MLP(), torch.zeros(32, 64), step=step, device="cpu", **options)


def test_start_is_parameters_and_inputs() -> None:
    assert traced().start == 2 * 64 * 256 * F32 + 32 * 64 * F32


def test_forward_without_grad_holds_one_activation_at_a_time() -> None:
    # relu's input is dropped when relu has returned: at most two of the wide activations live at once.
    trace = traced("forward", grad=False)
    assert trace.peak - trace.start == 2 * 32 * 256 * F32
    assert trace.end - trace.start == 32 * 64 * F32


def test_forward_with_grad_keeps_what_backward_needs() -> None:
    # relu saves its output, which the second product needs too; the first product's output is not saved.
    trace = traced("forward")
    kept = [block for block in trace.blocks if block.kind == "activation" and block.op is not None]
    assert sorted(block.nbytes for block in kept) == [32 * 64 * F32, 32 * 256 * F32]


def test_training_ends_with_gradients_and_two_states_a_parameter() -> None:
    trace = traced()
    weights = 2 * 64 * 256 * F32
    by_kind = Counter({block.kind: 0 for block in trace.blocks})
    for block in trace.blocks:
        by_kind[block.kind] += block.nbytes
    assert by_kind["gradient"] == weights
    steps = 2 * F32  # AdamW counts its steps in a tensor for each parameter, on the host: here the traced device
    assert by_kind["optimizer"] == 2 * weights + steps
    assert trace.end == trace.start + 3 * weights + steps + 32 * 64 * F32 + F32  # and output and loss, still in scope


def test_the_second_step_frees_gradients_before_it_makes_them_anew() -> None:
    one, two = traced(), traced(steps=2)
    assert two.end == one.end
    second = [total for event, total in zip(two.events, two.totals, strict=True) if event.op and two.ops[event.op].step]
    assert max(second) <= two.peak


def test_gradients_belong_to_their_parameters() -> None:
    gradients = {(b.name, b.module, b.nbytes) for b in traced().blocks if b.kind == "gradient"}
    assert gradients == {("up.weight", "up", 64 * 256 * F32), ("down.weight", "down", 64 * 256 * F32)}


def test_every_release_follows_its_allocation_and_nothing_is_released_twice() -> None:
    alive: set[int] = set()
    for event in traced(steps=2).events:
        assert (event.block in alive) != event.alloc
        (alive.add if event.alloc else alive.remove)(event.block)


def test_cuda_rounds_blocks_up() -> None:
    trace = graphmem.trace(nn.Linear(3, 3, bias=False), torch.zeros(1, 3), device="cuda", grad=False)
    assert trace.start == 512 + 512
    assert trace.peak == 512 + 512 + 512 + 8_519_680  # output, and cuBLAS's workspace on an A100


def test_operations_know_their_module_phase_and_line() -> None:
    ops = [op for op in traced().ops if op.name == "aten.mm.default"]
    assert [(op.module, op.phase) for op in ops] == [
        ("up", "forward"), ("down", "forward"), ("down", "backward"), ("down", "backward"), ("up", "backward")
    ]  # fmt: skip
    assert {op.line.split(":")[0] for op in ops} == {"test_trace.py"}
    assert len({op.line for op in ops}) == 1  # backward is attributed to the forward line


def test_the_graph_is_a_torch_fx_graph() -> None:
    trace = traced()
    graph = trace.graph
    graph.lint()
    assert isinstance(graph, torch.fx.Graph)
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in calls] == [op.name for op in trace.ops]
    product = next(node for node in calls if node.target is torch.ops.aten.mm.default)
    assert product.meta["shape"] == (32, 256)
    assert product.meta["dtype"] is torch.float32
    assert product.meta["module"] == "up"
    assert product.meta["nn_module_stack"] == {"": "MLP", "up": "Linear"}
    assert [trace.blocks[block].nbytes for block in product.meta["allocated"]] == [32 * 256 * F32]
    assert "mm" in str(graph)


def test_saved_tensors_are_marked_on_the_operation_that_saved_them() -> None:
    relu = next(node for node in traced("forward").graph.nodes if node.target is torch.ops.aten.relu.default)
    assert relu.meta["saved"] == [relu]
    second = [node for node in traced("forward").graph.nodes if node.target is torch.ops.aten.mm.default][1]
    assert {str(node.target) for node in second.meta["saved"]} >= {"aten.relu.default"}


def test_the_data_flow_is_a_directed_acyclic_graph() -> None:
    trace = traced("forward", grad=False)
    flow = trace.to_networkx()
    assert networkx.is_directed_acyclic_graph(flow)
    relu = next(index for index, op in enumerate(trace.ops) if op.name == "aten.relu.default")
    product = next(index for index, op in enumerate(trace.ops) if op.name == "aten.mm.default")
    assert flow.edges[product, relu]["nbytes"] == 32 * 256 * F32
    assert networkx.has_path(flow, "input_0", len(trace.ops) - 1)


def test_a_trace_saves_and_loads(tmp_path: Path) -> None:
    trace = graphmem.trace(MLP().half(), torch.zeros(4, 64).half(), step="train", autocast=torch.bfloat16)
    trace.save(tmp_path / "step.trace")
    loaded = graphmem.load_trace(tmp_path / "step.trace")
    assert loaded == trace
    assert str(loaded.graph) == str(trace.graph)


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no")
    with pytest.raises(graphmem.GraphmemError, match="is no trace that graphmem saved"):
        graphmem.load_trace(tmp_path / "x")
    with pytest.raises(graphmem.GraphmemError, match="No such file"):
        graphmem.load_trace(tmp_path / "y")


def test_it_prints_and_shows() -> None:
    trace = traced()
    assert "Alive at the peak" in repr(trace)
    assert trace._repr_html_().count("<table") >= 3
    assert trace["peak"] == trace.peak
    for by in ("op", "module", "layer", "line"):
        table = trace.report(by)[f"by_{by}"]
        assert isinstance(table, graphmem.Table)
        assert table.total is not None
        assert table.total[1] == len(trace.ops)


def test_the_module_is_left_as_it_was() -> None:
    module = MLP()
    weights = [p.detach().clone() for p in module.parameters()]
    graphmem.trace(module, torch.zeros(32, 64), step="train")
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), weights, strict=True))
    assert all(p.grad is None and p.device.type == "cpu" for p in module.parameters())
    assert not module._forward_hooks


def _nothing_is_left() -> None:
    assert _len_torch_dispatch_stack() == 0
    assert _len_torch_function_stack() == 0
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert torch.UntypedStorage.resize_.__name__ == "resize_"
    assert not hasattr(torch.UntypedStorage.resize_, "__wrapped__")
    assert not any(
        getattr(module, name) is presented._overridden_by_a_subclass for module, name in presented._OVERRIDE_CHECKS
    )
    assert not torch.cuda.is_available()
    assert gc.isenabled()
    assert torch.zeros(1).device.type == "cpu"


def test_nothing_stays_patched() -> None:
    traced()
    _nothing_is_left()


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_nothing_stays_patched_when_the_step_fails(error: BaseException) -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else graphmem.GraphmemError):
        graphmem.trace(Fails(), torch.zeros(1))
    _nothing_is_left()


def test_random_numbers_are_not_used_up() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    graphmem.trace(model, torch.zeros(2, 4), step="train", device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_a_failure_names_module_operation_and_line() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x))

    with pytest.raises(
        graphmem.GraphmemError, match=r"^in two at aten\.addmm\.default \(test_trace\.py:\d+\): RuntimeError: "
    ):
        graphmem.trace(Model(), torch.zeros(2, 4))


def test_a_failure_of_python_names_module_and_line() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.nonexistent

    model = nn.Sequential(nn.Linear(4, 4), Inner())
    with pytest.raises(
        graphmem.GraphmemError, match=r"^in 1 \(test_trace\.py:\d+\): AttributeError: 'Tensor' object has no"
    ):
        graphmem.trace(model, torch.zeros(2, 4))


def test_the_wrong_number_of_inputs() -> None:
    with pytest.raises(graphmem.GraphmemError, match="TypeError: .*missing 1 required positional argument"):
        graphmem.trace(nn.Linear(4, 4))


def test_nothing_to_train() -> None:
    with pytest.raises(graphmem.GraphmemError, match="no parameter of the module requires a gradient"):
        graphmem.trace(nn.ReLU(), torch.zeros(2), step="train")
    with pytest.raises(graphmem.GraphmemError, match="pass loss="):
        graphmem.trace(nn.Linear(2, 2), torch.zeros(2, 2), step="train", loss=lambda output: output.detach().sum())


def test_no_module() -> None:
    with pytest.raises(graphmem.GraphmemError, match=r"this is a int"):
        graphmem.trace(3)  # type: ignore[arg-type]


# -- mechanisms that decide when memory comes and goes -----------------------------------------------------------------


def test_tied_parameters_are_one_block() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(100, 16), nn.Linear(16, 100, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    trace = graphmem.trace(Tied(), torch.zeros(1, 8, dtype=torch.int64), step="train", device="cpu")
    assert [b.nbytes for b in trace.blocks if b.kind == "parameter"] == [100 * 16 * F32]
    assert [b.nbytes for b in trace.blocks if b.kind == "gradient"] == [100 * 16 * F32]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_frees_what_is_inside_and_runs_it_again(reentrant: bool) -> None:
    class Checkpointed(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    x = torch.zeros(32, 64, requires_grad=True)
    plain = graphmem.trace(MLP(), x, step="train", device="cpu", optimizer=torch.optim.SGD)
    again = graphmem.trace(Checkpointed(), x, step="train", device="cpu", optimizer=torch.optim.SGD)

    def alive_before_backward(trace: graphmem.Trace) -> int:
        first = next(i for i, op in enumerate(trace.ops) if op.phase == "backward")
        return [total for event, total in zip(trace.events, trace.totals, strict=True) if (event.op or 0) < first][-1]

    assert alive_before_backward(plain) - alive_before_backward(again) == 32 * 256 * F32
    # Non-reentrant checkpointing stops as soon as the last saved tensor is there again: before the second product.
    products = [op.module for op in again.ops if op.phase == "recompute" and op.name == "aten.mm.default"]
    assert products == (["up", "down"] if reentrant else ["up"])


def test_custom_functions_keep_what_they_save() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            return 2 * x * grad

    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Square.apply(super().forward(x))

    trace = graphmem.trace(Model(8, 8), torch.zeros(2, 8), step="train", device="cpu")
    assert any(op.node == "SquareBackward" for op in trace.ops)
    square = next(op for op in trace.ops if op.name == "aten.mul.Tensor" and op.phase == "forward")
    assert [trace.values[value].shape for value in square.saved] == [(2, 8)]


def test_views_and_in_place_operations_allocate_nothing() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.clone()
            y.view(-1)[::2].mul_(2)
            y += 1
            return y.t()

    trace = graphmem.trace(Model(), torch.zeros(4, 4))
    assert [b.nbytes for b in trace.blocks if b.op is not None] == [4 * 4 * F32]


def test_storage_resizing_is_seen() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            full = torch.empty(100, device=x.device)
            storage = full.untyped_storage()
            storage.resize_(0)
            y = x + 1
            storage.resize_(400)
            return y + full[:1]

    trace = graphmem.trace(Model(), torch.zeros(1), device="cpu")
    sizes = [(e.alloc, trace.blocks[e.block].nbytes) for e in trace.events if e.op is not None]
    assert [size for size in sizes if size[1] == 400] == [(True, 400), (False, 400), (True, 400), (False, 400)]


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.complex64, 8), (torch.float8_e4m3fn, 1), (torch.int8, 1), (torch.bool, 1)]
)
def test_dtypes(dtype: torch.dtype, size: int) -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

    trace = graphmem.trace(Model(), torch.zeros(1000).to(dtype), device="cpu")
    assert trace.blocks[-1].nbytes == 1000 * size


def test_inference_mode_takes_composite_operators_apart() -> None:
    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return torch.einsum("bi,oi->bo", x, self.weight)

    names = [op.name for op in graphmem.trace(Model(4, 4), torch.zeros(2, 4)).ops]
    assert "aten.bmm.default" in names
    assert "aten.einsum.default" not in names


def test_hooks_run() -> None:
    model = MLP()
    model.up.register_forward_hook(lambda module, inputs, output: output[:, :100])
    with pytest.raises(graphmem.GraphmemError, match="in down at aten.mm.default"):
        graphmem.trace(model, torch.zeros(2, 64))


def test_several_optimizers_and_losses() -> None:
    sgd = traced(
        optimizer=lambda parameters: torch.optim.SGD(parameters, momentum=0.9), loss=lambda y: y.square().mean()
    )
    assert sum(b.nbytes for b in sgd.blocks if b.kind == "optimizer") == 2 * 64 * 256 * F32
    assert any(op.phase == "loss" and op.name == "aten.mean.default" for op in sgd.ops)


def test_what_the_model_caches_while_it_is_traced_does_not_outlive_the_trace() -> None:
    module = Cached()
    graphmem.trace(module, torch.zeros(4))
    assert positions.cache_info().currsize == 0
    assert torch.equal(module(torch.zeros(4)), torch.arange(4.0))


@functools.lru_cache
def positions(length: int, device: torch.device) -> torch.Tensor:
    return torch.arange(float(length), device=device)


class Cached(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + positions(x.shape[0], x.device)


def test_an_exception_out_of_a_forward_keeps_nothing_alive() -> None:
    """Checkpointing without reentrance ends each recomputation by one; what its traceback holds must be gone as in eager."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held = self.layer(x)
            return torch.relu(held) * 2

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.block, x, use_reentrant=False)

    trace = graphmem.trace(Net(), torch.zeros(32, 64, requires_grad=True), step="train", optimizer="SGD", device="cpu")
    alive = {event.block for event in trace.events if event.alloc} - {e.block for e in trace.events if not e.alloc}
    activations = [trace.blocks[block] for block in alive if trace.blocks[block].shape == (32, 64)]
    # The input, its gradient and the output, which the loop still holds.
    assert len(activations) == 3
