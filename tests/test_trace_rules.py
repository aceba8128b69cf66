"""Device rules: the registry, autocast, attention's choice of backend, and rules of the user's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import graphmem
from graphmem.tracing import autocast
from graphmem.tracing.device import A100, H100, Device
from graphmem.tracing.rules import REGISTRY, Registry, cuda_attention, rule
from graphmem.tracing.rules.cuda_reductions import _KINDS, split_buffer


def test_every_rule_says_why_and_where_that_is_written() -> None:
    rules = list(REGISTRY)
    assert len(rules) > 100
    for found in rules:
        assert found.reason, found.target
        assert found.source or found.kind == "data", found.target


def test_a_second_rule_for_the_same_thing_is_refused() -> None:
    registry = Registry()

    def why(call: object) -> None:
        """Because."""

    rule("scratch", "aten.mm.default", device="cuda", registry=registry)(why)
    with pytest.raises(
        graphmem.GraphmemError, match=r"there is a scratch rule for aten.mm.default on cuda already: Because\."
    ):
        rule("scratch", "aten.mm.default", device="cuda", registry=registry)(why)
    rule("scratch", "aten.mm.default", device="cpu", registry=registry)(why)


def test_a_rule_without_a_reason_is_refused() -> None:
    with pytest.raises(graphmem.GraphmemError, match="has no docstring; say there why it is needed"):
        rule("output", "aten.mm.default", registry=Registry())(lambda call: None)


# -- the user's own operators ------------------------------------------------------------------------------------------

LIBRARY = torch.library.Library("graphmem_tests", "DEF")
LIBRARY.define("mystery(Tensor x) -> Tensor")


class Mystery(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.graphmem_tests.mystery(x)


def test_an_operator_nobody_knows_is_reported_by_name_module_and_line() -> None:
    model = nn.Sequential(nn.ReLU(), Mystery())
    with pytest.raises(
        graphmem.GraphmemError,
        match=r"^in 1 at graphmem_tests.mystery.default \(test_trace_rules.py:\d+\): .*torch.library.register_fake, "
        r"or a rule: graphmem.rule\('output', 'graphmem_tests.mystery.default'\)$",
    ):
        graphmem.trace(model, torch.zeros(4), grad=False)


def test_rules_for_it_make_it_known() -> None:
    name = "graphmem_tests.mystery.default"

    @graphmem.rule("output", name)
    def shape(call):  # type: ignore[no-untyped-def]
        """A Triton kernel that doubles its input's length."""
        return torch.empty(2 * call.args[0].shape[0], device="meta")

    @graphmem.rule("scratch", name, device="cuda")
    def scratch(call):  # type: ignore[no-untyped-def]
        """It takes a lock for each program."""
        return graphmem.Scratch(after=(64,))

    try:
        trace = graphmem.trace(Mystery(), torch.zeros(4), grad=False)
    finally:
        REGISTRY.remove("output", name)
        REGISTRY.remove("scratch", name, "cuda")
    sizes = [(e.alloc, trace.blocks[e.block].nbytes) for e in trace.events if e.op is not None]
    assert sizes == [(True, 32), (True, 64), (False, 64)]


# -- autocast ----------------------------------------------------------------------------------------------------------


def casts(module: nn.Module, *inputs: torch.Tensor, **options: object) -> list[tuple[int, ...]]:
    """Shapes of the casts a forward makes, in order."""
    trace = graphmem.trace(module, *inputs, **options)  # type: ignore[arg-type]
    return [trace.values[op.outputs[0]].shape for op in trace.ops if op.name == "aten._to_copy.default"]


class Twice(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x))


def test_a_weight_is_cast_once_and_the_last_argument_first() -> None:
    assert casts(Twice(8, 8), torch.zeros(2, 8), autocast=torch.bfloat16) == [(8,), (8, 8), (2, 8)]


def test_under_inference_mode_nothing_is_cached() -> None:
    class Inference(Twice):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return super().forward(x)

    assert casts(Inference(8, 8), torch.zeros(2, 8), autocast=torch.bfloat16) == [(8,), (8, 8), (2, 8), (8,), (8, 8)]


def test_the_cache_ends_with_the_outermost_region() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                with torch.autocast("cuda", torch.bfloat16):
                    self.one(x)
                self.one(x)
            with torch.autocast("cuda", torch.bfloat16):
                return self.one(x)

    trace = graphmem.trace(Regions(), torch.zeros(2, 8), grad=False)
    weights = [
        op for op in trace.ops if op.name == "aten._to_copy.default" and trace.values[op.outputs[0]].shape == (8, 8)
    ]
    assert len(weights) == 2


def test_disabled_regions_and_float32_lists() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            low = x @ x
            assert low.dtype == torch.bfloat16
            assert functional.layer_norm(low, (8,)).dtype == torch.float32
            assert functional.softmax(low, -1).dtype == torch.float32
            assert (low + x).dtype == torch.float32  # promoted by the operator itself
            assert functional.gelu(low).dtype == torch.bfloat16
            with torch.autocast("cuda", enabled=False):
                assert (x @ x).dtype == torch.float32
            return low

    graphmem.trace(Model(), torch.zeros(8, 8), autocast=torch.bfloat16)


def test_every_listed_function_is_one_of_torchs() -> None:
    places = (torch, torch.nn.functional, torch.Tensor, torch._C._nn, torch._C._linalg)
    for lists in autocast._LISTS.values():
        for name in frozenset().union(*lists) - {
            "frobenius_norm",
            "nuclear_norm",
            "_convolution",
            "upsample_linear1d",
            "linalg_matrix_norm",
        }:
            assert any(hasattr(place, name) for place in places), name


# -- attention ---------------------------------------------------------------------------------------------------------

L4 = Device("cuda", "L4", (8, 9), 58)


def chosen(device: Device = A100, dtype: torch.dtype = torch.bfloat16, dim: int = 64, mask: bool = False, kv_heads: int = 8,
           gqa: bool = False, causal: bool = False, keys: int = 128, grad: bool = False, dropout: float = 0.0) -> str:  # fmt: skip
    q = torch.empty(2, 8, 128, dim, dtype=dtype, device="meta", requires_grad=grad)
    k, v = (torch.empty(2, kv_heads, keys, dim, dtype=dtype, device="meta") for _ in range(2))
    bias = torch.empty(2, 1, 128, keys, dtype=torch.bool, device="meta") if mask else None
    return cuda_attention.backend(cuda_attention._Problem(q, k, v, bias, dropout, causal, gqa, device))


@pytest.mark.parametrize(
    ("expected", "settings"),
    [
        ("flash", {}),
        ("flash", {"dim": 80}),
        ("efficient", {"dim": 512}),
        ("efficient", {"dtype": torch.float32}),
        ("efficient", {"mask": True}),
        ("flash", {"kv_heads": 2, "gqa": True}),
        ("math", {"kv_heads": 2, "gqa": True, "mask": True}),
        ("math", {"kv_heads": 2, "gqa": True, "dtype": torch.float32}),
        ("math", {"dtype": torch.float64}),
        ("math", {"dtype": torch.float32, "dim": 66}),
        ("efficient", {"causal": True, "keys": 64}),
        ("cudnn", {"device": H100}),
        ("cudnn", {"device": H100, "mask": True, "kv_heads": 2, "gqa": True}),
        ("flash", {"device": H100, "dim": 100}),
        ("efficient", {"device": L4, "dim": 224, "grad": True}),
        ("flash", {"device": L4, "dim": 224}),
        ("flash", {"device": Device("cuda", "T4", (8, 0), 40)}),
        ("efficient", {"device": Device("cuda", "T4", (7, 5), 40), "dtype": torch.float16}),
        ("math", {"device": Device("cuda", "T4", (7, 5), 40)}),
    ],
)
def test_which_backend_runs(expected: str, settings: dict[str, object]) -> None:
    assert chosen(**settings) == expected  # type: ignore[arg-type]


def test_a_backend_can_be_switched_off_as_in_torch() -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert chosen() == "math"
    assert chosen() == "flash"


def attention_trace(dtype: torch.dtype, device: Device = A100) -> graphmem.Trace:
    class Attention(nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            return functional.scaled_dot_product_attention(q, q, q)

    return graphmem.trace(Attention(), torch.zeros(2, 4, 256, 64, dtype=dtype), grad=False, device=device)


def test_fused_attention_allocates_no_scores() -> None:
    scores = 2 * 4 * 256 * 256 * 2
    assert max(b.nbytes for b in attention_trace(torch.bfloat16).blocks) < scores
    assert max(b.nbytes for b in attention_trace(torch.float64).blocks) > scores


def test_memory_efficient_backward_as_measured() -> None:
    """TinyLlama in float32 on a real GPU: batch 1, 32 heads, 1,000 tokens, 64 a head (gpu_snapshots, cranberrii)."""

    class Attention(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return functional.scaled_dot_product_attention(q, k, v)

    qkv = [torch.zeros(1, 1000, 32, 64, requires_grad=True) for _ in range(3)]
    trace = graphmem.trace(Attention(), *qkv, step="forward")
    forward = next(i for i, op in enumerate(trace.ops) if "efficient" in op.name)
    sizes = [trace.blocks[e.block].nbytes for e in trace.events if e.op == forward and e.alloc]
    assert sizes == [8_192_000, 131_072]


# -- reductions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dims", "kind", "sms", "expected"),
    [
        ((2048, 2560), {0}, "sum", 108, (41_943_040, 80)),  # RMS norm's weight gradient, measured
        ((2048, 2560), {0}, "mean", 108, (41_943_040, 80)),
        ((2048, 10_000), {0}, "max.dim", 132, (552_960_000, 316)),  # a written-out cross-entropy's maximum, measured
        ((4, 4), {0}, "sum", 108, (0, 0)),
        ((512, 1024), {1}, "sum", 108, (0, 0)),
    ],
)
def test_split_reductions_as_measured(
    shape: tuple[int, ...], dims: set[int], kind: str, sms: int, expected: tuple[int, int]
) -> None:
    tensor = torch.empty(shape, device="meta")
    assert split_buffer(tensor, dims, _KINDS[kind], Device("cuda", "GPU", (8, 0), sms)) == expected


def test_dropout_is_fused_on_cuda_and_drawn_on_the_cpu() -> None:
    model, x = nn.Dropout(0.1), torch.zeros(1024, requires_grad=True)
    on_cuda, on_cpu = (graphmem.trace(model, x, device=device) for device in ("cuda", "cpu"))
    assert on_cuda.ops[0].name == "aten.native_dropout.default"
    assert sum(b.nbytes for b in on_cuda.blocks if b.op is not None) == 1024 * 4 + 1024
    assert "aten.bernoulli_.float" in [op.name for op in on_cpu.ops]


def test_foreach_is_chosen_on_cuda_only() -> None:
    names = [
        {op.name for op in graphmem.trace(nn.Linear(4, 4), torch.zeros(2, 4), step="train", device=device).ops}
        for device in ("cuda", "cpu")
    ]
    assert "aten._foreach_sqrt.default" in names[0]
    assert "aten._foreach_sqrt.default" not in names[1]


def test_code_that_asks_for_the_device_gets_the_traced_one() -> None:
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.is_cuda
            assert not x.is_meta
            assert x.device.type == "cuda"
            assert torch.cuda.get_device_capability(x.device) == (8, 0)
            y = torch.arange(4, device=x.device) + torch.tensor([1, 2, 3, 4], device=x.device)
            assert y.tolist() == [1, 3, 5, 7]
            assert torch.arange(3).device.type == "cpu"
            return x + y.to("cuda").float()

    graphmem.trace(Asks(), torch.zeros(4))
