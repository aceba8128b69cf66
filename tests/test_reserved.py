"""Reserved memory of traced steps: equal to real runs from an empty allocator, and what the report says of it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import graphmem  # noqa: E402
from graphmem.errors import GraphmemError  # noqa: E402
from graphmem.timeline.reserved import requests_of  # noqa: E402
from tests.accuracy.snapshots import SNAPSHOTS  # noqa: E402

MIB = 2**20


def _cases_from_nothing() -> list[object]:
    if not SNAPSHOTS.exists():
        return []
    from tests.accuracy.gpu import index
    from tests.accuracy.reserved import cases

    return [case for case in cases() if index()[case.file]["starts_empty"]]  # type: ignore[attr-defined]


@pytest.mark.skipif(not SNAPSHOTS.exists(), reason="../shared/gpu_snapshots is not here")
@pytest.mark.parametrize("case", _cases_from_nothing(), ids=lambda case: case.name.partition("__")[2])
def test_from_the_model_alone_to_the_byte(case: object) -> None:
    from tests.accuracy.reserved import measure

    row = measure(case)  # type: ignore[arg-type]
    assert row.predicted == row.real


class Net(torch.nn.Module):
    """Children are moved before a module's own parameters, and those before its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.nn.Parameter(torch.zeros(100))
        self.register_buffer("table", torch.zeros(200))
        self.layer = torch.nn.Linear(30, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x) + self.own[:10] + self.table[:10]
        torch.cuda.empty_cache()
        return y * 2


def test_weights_come_as_module_to_moves_them() -> None:
    trace = graphmem.trace(Net(), torch.zeros(5, 30), grad=False)
    sizes = [request.nbytes for request in requests_of(trace)[:5]]
    assert sizes == [30 * 10 * 4, 10 * 4, 100 * 4, 200 * 4, 5 * 30 * 4]


def test_empty_cache_is_served_where_it_was_called() -> None:
    trace = graphmem.trace(Net(), torch.zeros(5, 30), grad=False)
    actions = [(request.action, request.block) for request in requests_of(trace)]
    emptied = actions.index(("empty_cache", -1))
    doubled = next(
        i
        for i, event in enumerate(trace.events)
        if event.op is not None and trace.ops[event.op].name == "aten.mul.Tensor"
    )
    assert actions[emptied + 1] == ("alloc", trace.events[doubled].block)


def test_reserved_and_what_settings_change() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.ReLU(), torch.nn.Linear(2048, 512))
    trace = graphmem.trace(module, torch.zeros(3000, 2048), step="train", steps=2)
    report = trace.report()
    assert report["reserved"] == trace.reserved == trace.simulation.peak_reserved > trace.simulation.peak_allocated
    rows = {row["setting"]: row for row in report["alloc_conf"]}
    assert rows["expandable_segments:True"]["reserved"] == trace.simulate("expandable_segments:True").peak_reserved
    assert rows["expandable_segments:True"]["change"] == rows["expandable_segments:True"]["reserved"] - trace.reserved
    again = graphmem.trace(
        module, torch.zeros(3000, 2048), step="train", steps=2, alloc_conf="expandable_segments:True"
    )
    assert again.report()["reserved"] == rows["expandable_segments:True"]["reserved"]
    levels = {row["level"]: row["bytes"] for row in report["levels"]}
    assert levels["tensors"] == trace.peak
    assert levels["allocated"] == trace.simulation.peak_allocated >= trace.peak
    assert levels["reserved"] == trace.reserved


def test_a_first_step_is_called_one() -> None:
    module, inputs = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    said = "one step, the first of a run"
    assert said in str(graphmem.trace(module, inputs, step="train", gpu="T4"))
    assert said not in str(graphmem.trace(module, inputs, step="train", gpu="T4", steps=2))
    assert said not in str(graphmem.trace(module, inputs, gpu="T4"))


def test_a_gpu_says_what_nvidia_smi_shows() -> None:
    trace = graphmem.trace(Net(), torch.zeros(5, 30), gpu="T4")
    report = trace.report()
    low, median, high = trace.device.context  # type: ignore[misc]
    assert 0 < low <= median <= high
    assert report["driver"] == trace.reserved + median
    assert trace.device.capability == (7, 5)
    assert [row["level"] for row in report["levels"]] == [
        "tensors",
        "allocated",
        "reserved",
        "CUDA context",
        "nvidia-smi",
        "GPU",
    ]


def test_where_a_step_dies() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024))
    whole = graphmem.trace(module, torch.zeros(4096, 1024), step="train")
    context = whole.device.context[1]  # type: ignore[index]
    trace = graphmem.trace(
        module, torch.zeros(4096, 1024), step="train", memory=context + whole.simulation.peak_allocated - 1
    )
    report = trace.report()
    assert trace.simulation.out_of_memory is not None
    assert "backward" in str(report["dies"]) or "optimizer" in str(report["dies"])
    assert report["reserved_needed"] == whole.reserved
    (warning,) = report.warnings
    assert warning.startswith("CUDA out of memory. Tried to allocate ")
    enough = graphmem.trace(module, torch.zeros(4096, 1024), step="train", memory=context + whole.reserved + 5)
    assert enough.simulation.out_of_memory is None
    assert not enough.report().warnings
    assert enough.report()["headroom"] == 5


def test_less_than_the_model_itself_is_one_line() -> None:
    module = torch.nn.Linear(4096, 4096)
    trace = graphmem.trace(module, torch.zeros(1, 4096), memory=432 * MIB)
    with pytest.raises(GraphmemError) as caught:
        trace.report()
    assert str(caught.value) == (
        "432.00 MiB do not hold the model itself: parameters, buffers and inputs are 64.03 MiB, for which PyTorch reserves 66.00 MiB beside a "
        "CUDA context of 414.00 MiB; take a larger GPU or a smaller dtype"
    )


def test_what_excludes_each_other() -> None:
    module, inputs = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    with pytest.raises(GraphmemError, match="device 'cuda' and gpu 'T4' exclude each other"):
        graphmem.trace(module, inputs, device="cuda", gpu="T4")
    with pytest.raises(GraphmemError, match="memory 10: is about a GPU; this is traced for CPU"):
        graphmem.trace(module, inputs, device="cpu", memory=10)
    with pytest.raises(GraphmemError, match="alloc-conf .*: is about CUDA's caching allocator; this is traced for CPU"):
        graphmem.trace(module, inputs, device="cpu", alloc_conf="expandable_segments:True")
    with pytest.raises(GraphmemError, match="memory 0 bytes: no GPU has so little; write 24GiB"):
        graphmem.trace(module, inputs, memory=0)
    with pytest.raises(GraphmemError, match="simulate is about CUDA's caching allocator; this was traced for CPU"):
        graphmem.trace(module, inputs, device="cpu").simulate()
    assert graphmem.trace(module, inputs, device="cpu").reserved == graphmem.trace(module, inputs, device="cpu").peak


def test_recurrent_weights_are_copied_into_one_buffer_as_they_are_moved() -> None:
    """torch/nn/modules/rnn.py: ``_apply`` ends with ``flatten_parameters``; the first copies are freed and stay cached."""
    trace = graphmem.trace(torch.nn.LSTM(2048, 2048, 2), torch.zeros(3, 1, 2048), grad=False)
    weights = [4 * 2048 * 2048 * 4] * 4
    biases = [4 * 2048 * 4] * 4
    whole = sum(weights) + sum(biases)
    actions = [(request.action, request.nbytes) for request in requests_of(trace)]
    assert actions[:8] == [("alloc", size) for size in (weights[0], weights[1], biases[0], biases[1]) * 2]
    assert actions[8] == ("alloc", whole)
    assert [action for action, _ in actions[9:17]] == ["free"] * 8
    assert trace.simulation.peak_allocated >= 2 * whole
    assert trace.reserved >= 2 * whole
    timeline = trace.report(events=True)["timeline"].records()
    assert len(timeline) == len(trace.events)
    assert timeline[-1]["reserved"] == trace.reserved
    half = graphmem.trace(torch.nn.LSTM(64, 64).bfloat16(), torch.zeros(3, 1, 64).bfloat16(), grad=False)
    assert all(request.action == "alloc" for request in requests_of(half)[:5]), "cuDNN takes no bfloat16 weights"
