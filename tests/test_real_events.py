"""The record of real allocations itself is checked on steps whose allocations are known by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from graphmem.measuring.cpu_events import Event, cpu_events, peak_rise  # noqa: E402
from tests.accuracy.real import kept, lifetimes  # noqa: E402


def test_bytes_order_and_pairing_of_a_known_step() -> None:
    def step() -> None:
        first = torch.empty(1000)
        second = torch.empty(3, dtype=torch.float64)
        del first
        torch.empty(500, dtype=torch.int8)
        del second

    events = cpu_events(step)
    assert [event.bytes for event in events] == [4000, 24, -4000, 500, -500, -24]
    assert peak_rise(events) == 4024
    assert kept(events) == 0
    assert lifetimes(events) == [(0, 4000, 2), (1, 24, 5), (3, 500, 4)]
    assert [event.op for event in events if event.bytes > 0] == ["aten::empty"] * 3


def test_what_is_kept_and_what_was_there_before() -> None:
    held = [torch.empty(100)]

    def step() -> None:
        held[0] = torch.empty(250)

    events = cpu_events(step)
    assert [event.bytes for event in events] == [1000, -1000]  # The warm-up's storage goes away.
    assert lifetimes(events) == [(0, 1000, None)]
    assert peak_rise(events) == 1000


def test_the_returned_value_is_dropped_inside_the_record() -> None:
    events = cpu_events(lambda: torch.empty(64))
    assert [event.bytes for event in events] == [256, -256]


def test_an_operator_frees_its_own_temporaries() -> None:
    tall = torch.ones(64, 32)

    def step() -> torch.Tensor:
        return (tall + tall).sum()

    events = cpu_events(step)
    assert [event.bytes for event in events] == [64 * 32 * 4, 4, -64 * 32 * 4, -4]
    assert peak_rise(events) == 64 * 32 * 4 + 4


def test_warm_ups_keep_what_only_a_first_run_allocates_out_of_the_record() -> None:
    lazily: dict[str, torch.Tensor] = {}

    def step() -> None:
        lazily.setdefault("buffer", torch.empty(0)) if lazily else lazily.update(buffer=torch.empty(1000))

    assert cpu_events(step) == []
    lazily.clear()
    assert [event.bytes for event in cpu_events(step, warm_ups=0)] == [4000]


def test_a_training_step_is_the_same_record_twice() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.LayerNorm(32), torch.nn.Linear(32, 1))
    batch = torch.randn(8, 16)

    def step() -> None:
        model.zero_grad()
        model(batch).sum().backward()

    first, second = ([(event.bytes, event.op) for event in cpu_events(step)] for _ in range(2))
    assert first == second
    assert kept([Event(size, 0) for size, _ in first]) == 0  # New gradients, as many as the old ones.
    gradients = [4 * parameter.numel() for parameter in model.parameters()]
    assert [size for size, _ in first[: len(gradients)]] == [-size for size in gradients]


def test_a_release_of_unknown_size_is_left_out_even_where_an_earlier_record_saw_the_address() -> None:
    for size in (1 << 16, 1 << 14):
        cpu_events(lambda size=size: torch.empty(size))
        old = [torch.empty(1 << 15)]  # Likely at an address that PyTorch remembers with another size.
        assert cpu_events(old.clear, warm_ups=0) == []


def test_a_backward_inside_a_backward_is_inside_the_record() -> None:
    from torch.utils.checkpoint import checkpoint

    layer = torch.nn.Linear(32, 32, bias=False)
    batch = torch.randn(4, 32, requires_grad=True)

    def step() -> None:
        checkpoint(layer, batch, use_reentrant=True).sum().backward()
        layer.weight.grad = batch.grad = None

    events = cpu_events(step)
    assert sum(event.bytes == 32 * 32 * 4 for event in events) == 1  # The gradient of the weight.
    assert sum(event.bytes == 4 * 32 * 4 for event in events) >= 3  # Forward, forward again, the batch's gradient.
    assert kept(events) == 0


def test_threads_and_the_cycle_collector_are_given_back() -> None:
    import gc

    threads = torch.get_num_threads()
    cpu_events(lambda: None)
    assert torch.get_num_threads() == threads
    assert gc.isenabled()
