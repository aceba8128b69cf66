"""``graphmem measure``: a real run on the CPU here; on CUDA the same comparison over a snapshot that stands for the device's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import graphmem  # noqa: E402
from graphmem.errors import GraphmemError  # noqa: E402
from graphmem.measuring.cuda import run_of  # noqa: E402
from graphmem.measuring.materialize import materialized  # noqa: E402
from graphmem.measuring.measurement import Difference, Measurement, difference, peak_of  # noqa: E402
from graphmem.measuring.predict import predicted  # noqa: E402
from graphmem.measuring.report import report  # noqa: E402
from graphmem.snapshots.snapshot import snapshot_of  # noqa: E402
from graphmem.snapshots.write import as_snapshot  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 8)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))

class Fails(Net):
    def forward(self, x):
        if x.data_ptr():
            raise RuntimeError("no real run")
        return super().forward(x)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "models_here.py").write_text(MODELS)
    return subprocess.run(
        [sys.executable, "-m", "graphmem", "measure", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "120", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def test_a_training_step_on_the_cpu_is_what_was_predicted(tmp_path: Path) -> None:
    row = tmp_path / "row.json"
    done = run(
        tmp_path, "models_here:Net", "--input", "float32[32,64]", "--train", "--steps", "2", "--optimizer", "SGD", "--json",
        str(row), "-q",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "First difference: none" in done.stdout
    assert "measured on the CPU, on one thread" in done.stdout
    found = json.loads(row.read_text())
    assert found["matched"] == len(found["real"]["events"]) > 40
    assert found["real"]["peak"] == found["predicted"]["peak"]
    assert found["real"]["start"] == (64 * 256 + 256 + 256 * 8 + 8 + 32 * 64) * 4
    assert found["real"]["peak"] == peak_of(found["real"]["start"], found["real"]["events"])
    assert found["arguments"]["step"] == "train"
    assert found["arguments"]["optimizer"] == "SGD"
    assert found["inputs"] == ["float32[32,64]"]
    assert "Note: optimizer: SGD" in done.stdout
    assert found["device"]["type"] == "cpu"
    assert set(found["versions"]) >= {"torch", "python", "graphmem"}


def test_a_model_id_is_measured_without_a_download(tmp_path: Path) -> None:
    done = run(tmp_path, "hf-internal/none", "--offline")
    assert (done.returncode, done.stdout) == (2, "")
    found = graphmem.measure(
        "sentence-transformers/all-MiniLM-L6-v2", device="cpu", offline=True, grad=False, seq_len=16
    )
    assert found.matched >= 0.99 * len(found.real.events) > 100
    assert found.real.peak == pytest.approx(found.predicted.peak, rel=0.001)


def test_figures_as_csv(tmp_path: Path) -> None:
    done = run(tmp_path, "models_here:Net", "--input", "float32[2,64]", "--csv")
    header, *rows = done.stdout.splitlines()
    assert header == "section,figure,predicted,measured,error"
    assert [row.split(",")[1] for row in rows] == ["before the step", "peak allocated"]
    assert done.stderr == ""


def test_python_returns_what_is_printed() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh())
    found = graphmem.measure(module, torch.zeros(4, 16), device="cpu", step="train")
    assert isinstance(found, Measurement)
    assert found.first_difference is None
    assert report(found)["matched"] == len(found.real.events)
    assert all(parameter.grad is None for parameter in module.parameters()), "the user's module is left alone"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models_here:Net", "--input", "float32[2,64]", "--device", "cuda"], "this machine has no CUDA device that torch can use; measure with --device cpu"),
        (["models_here:Fails", "--input", "float32[2,64]"], "models_here:Fails: the real run failed (RuntimeError: no real run); its prediction stands alone"),
        (["models_here:Net", "--input", "float32[2,64]", "--json", "/nowhere/row.json"], "--json /nowhere/row.json: the folder /nowhere does not exist; name a file that can be written"),
        (["models_here:Net", "--input", "float32[2,64]", "--alloc-conf", "foo:1"], "alloc-conf \"foo:1\": Unrecognized key 'foo' in CUDA allocator config."),
        (["models_here:Net", "--input", "float32[2,64]", "--optimizer", "SGD"], "--optimizer is for a training step; add --train"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"graphmem: {said}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_device_that_differs_is_told_apart() -> None:
    """The history of another workload stands for a device that does otherwise; ours stands for one that agrees."""
    module, inputs = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU()), torch.zeros(256, 512)
    trace = graphmem.trace(module, inputs, step="train")
    other = graphmem.trace(module, torch.zeros(300, 512), step="train")
    for real, same in ((trace, True), (other, False)):
        (device,) = snapshot_of(as_snapshot(real), "")
        simulation = real.simulation
        found = run_of(device, simulation.peak_allocated, simulation.peak_reserved, simulation.peak_reserved + 2**29)
        measured = Measurement(
            "x", {}, (), (), {"type": "cuda", "name": "GPU"}, {"torch": "2"}, found, predicted(trace)
        )
        assert (measured.first_difference is None) is same
        assert (measured.matched == len(found.events)) is same
        text = str(report(measured))
        assert "device in use (nvidia-smi)" in text
        assert ("First difference: none" in text) is same
    assert measured.first_difference.real == 300 * 512 * 4  # type: ignore[union-attr]
    assert measured.first_difference.predicted == 256 * 512 * 4  # type: ignore[union-attr]


def test_differences() -> None:
    assert difference([1, -1], ["a", "b"], [1, -1], ["a", "b"]) is None
    assert difference([1], ["a"], [1, 5], ["a", "b"]) == Difference(1, 0, "", 5, "b")
    assert difference([1, 7, 5], ["a", "b", "c"], [1, 5], ["d", "e"]) == Difference(1, 7, "b", 5, "e")


def test_weights_are_moved_in_the_order_of_module_to_and_ties_stay() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.nn.Parameter(torch.empty(3))
            self.inner = torch.nn.Linear(4, 4)
            self.again = torch.nn.Linear(4, 4)
            self.again.weight = self.inner.weight
            self.register_buffer("count", torch.tensor([7]))

    with torch.device("meta"):
        module = Tied()
    real, (x,), _ = materialized(module, (torch.ones(2),), {}, "cpu")
    assert real.again.weight is real.inner.weight
    assert real.inner.weight.abs().sum() > 0
    assert x.tolist() == [1.0, 1.0]
    assert real.count.tolist() == [0]
    with pytest.raises(GraphmemError, match="device 'tpu': measure on cuda or cpu"):
        graphmem.measure(torch.nn.Linear(1, 1), torch.zeros(1, 1), device="tpu")


def test_the_way_through_cuda_with_a_stand_in_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: torch.cuda's answers are made up and the history is a trace's; what is tested is every line around them."""
    from types import SimpleNamespace

    from graphmem.measuring import cuda

    module, inputs = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU()), torch.zeros(256, 512)
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    device = graphmem.Device("cuda", "Stand-in", (8, 0), 108, (major, minor), 2**34)
    trace = graphmem.trace(module, inputs, step="train", device=device)
    simulation, recorded = trace.simulation, []
    properties = SimpleNamespace(name="Stand-in", major=8, minor=0, multi_processor_count=108, total_memory=2**34)
    answers = {
        "is_available": lambda: True, "current_device": lambda: 0, "get_device_properties": lambda index: properties,
        "empty_cache": lambda: None, "memory_reserved": lambda: 0, "reset_peak_memory_stats": lambda: None, "synchronize": lambda: None,
        "mem_get_info": lambda: (2**34 - simulation.peak_reserved - 400 * 2**20, 2**34),
        "max_memory_allocated": lambda: simulation.peak_allocated, "max_memory_reserved": lambda: simulation.peak_reserved,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: recorded.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: as_snapshot(trace))
    monkeypatch.setattr(
        cuda, "materialized", lambda module, args, kwargs, device: materialized(module, args, kwargs, "cpu")
    )
    found = graphmem.measure(module, inputs, step="train")
    assert found.first_difference is None
    assert found.matched == len(found.real.events) > 10
    assert (found.real.reserved, found.predicted.reserved) == (simulation.peak_reserved,) * 2
    assert found.real.driver == (simulation.peak_reserved + 400 * 2**20,) * 2
    assert [options.get("enabled", "on") for options in recorded] == ["on", None]
    assert found.row()["device"] == {
        "type": "cuda",
        "name": "Stand-in",
        "capability": [8, 0],
        "sms": 108,
        "memory": 2**34,
    }
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5)
    with pytest.raises(GraphmemError, match="this process has memory on the device already"):
        graphmem.measure(module, inputs, step="train")
