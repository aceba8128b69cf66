"""``graphmem trace`` as people type it: what it prints, and what it says of bad input. One line, exit 2."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)

class Reads(Net):
    def forward(self, x):
        return x.missing

number = 3

def five():
    return 5

def fails():
    raise RuntimeError("not today")
"""


NET = ["models_here:Net", "--input", "float32[2,4]"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "models_here.py").write_text(MODELS)
    return subprocess.run(
        [sys.executable, "-m", "graphmem", "trace", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "120", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_a_factory_as_json(tmp_path: Path) -> None:
    done = run(
        tmp_path, "models_here:Net", "--input", "float32[2,4]", "--train", "--device", "cpu", "--by", "op", "--json"
    )
    assert not done.stderr
    section = json.loads(done.stdout)["sections"][0]
    assert section["figures"]["start"]["value"] == (4 * 4 + 4 + 2 * 4) * 4
    assert section["tables"]["by_op"]["total"]["count"] == section["figures"]["ops"]["value"]


def test_every_event_as_csv(tmp_path: Path) -> None:
    done = run(tmp_path, "models_here:Net", "--input", "float32[2,4]", "--device", "cpu", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [int(row["bytes"]) for row in rows] == [64, 16, 32, 32]
    assert [row["kind"] for row in rows] == ["parameter", "parameter", "activation", "activation"]
    assert int(rows[-1]["total"]) == 144


def test_a_model_id_says_what_was_traced(tmp_path: Path) -> None:
    done = run(tmp_path, "openai-community/gpt2", "--offline", "--no-grad", "--seq-len", "16", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    assert "Note: inputs: input_ids int64[2,16]" in done.stdout
    assert "Note: weights: float32" in done.stdout
    assert "Note: not counted: workspaces of cuDNN" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["models_here:Net"],
            "TypeError: Net.forward() missing 1 required positional argument: 'x'; give inputs after the model, or on",
        ),
        (
            ["models_here:Net", "--input", "float32[2,5]"],
            "in layer at aten.addmm.default (models_here.py:11): RuntimeError: ",
        ),
        (
            ["models_here:Net", "--input", "float32[2,4]", "--input", "float32[2,4]"],
            "TypeError: Net.forward() takes 2 positional",
        ),
        (
            ["models_here:Reads", "--input", "float32[2,4]"],
            "in forward (models_here.py:15): AttributeError: 'Tensor' object has no",
        ),
        (
            ["models_here:number"],
            "number is a int, not callable; name a class or function that returns a torch.nn.Module",
        ),
        (["models_here:nothing"], "models_here has no 'nothing'; name a class or function"),
        (["models_here:five"], "returned a int, not a torch.nn.Module"),
        (["models_here:fails"], "failed when called without arguments (RuntimeError: not today)"),
        (["not_here:Net"], "cannot import not_here (ModuleNotFoundError: No module named 'not_here')"),
        (
            ["models_here:Net", "--input", "float33[2]"],
            "'float33' is no dtype of torch; use float32, bfloat16, int64, bool",
        ),
        (["models_here:Net", "--input", "float32(2)"], "write dtype[sizes], such as int64[1,2048]"),
        (["models_here:Net", "--input", "float32[0]"], "sizes must be 1 or more"),
        (["models_here:Net", "--input", "float32[-1]"], "sizes must be 1 or more"),
        (
            ["models_here:Net", "--input", "float32[99999999,99999999]"],
            "elements are more than any machine holds; check the sizes",
        ),
        (["models_here:Net", "--input", "float32[2,4]", "--dtype", "bf16"], "--dtype: for a model id"),
        (
            ["models_here:Net", "--input", "float32[2,4]", "--device", "tpu"],
            "device 'tpu': graphmem traces for cuda, cpu, a100, h100",
        ),
        (
            ["openai-community/gpt2", "--offline", "--seq-len", "2000"],
            "--seq-len 2000: the model has positions for 1024 tokens",
        ),
        (["openai-community/gpt2", "--offline", "--dtype", "int8"], "dtype int8: is no floating-point dtype of torch"),
        (
            ["openai-community/gpt2", "--offline", "--train", "--optimizer", "Magic"],
            "optimizer 'Magic': There are ASGD, Adadelta",
        ),
        (
            ["openai-community/gpt2", "--offline", "--optimizer", "SGD"],
            "--optimizer is for a training step; add --train",
        ),
        (["openai-community/gpt2", "--offline", "--train", "--no-grad"], "--train needs gradients; drop --no-grad"),
        (
            ["openai-community/gpt2", "--offline", "--batch-size", "9999999999"],
            "tokens in one step; check --batch-size",
        ),
        (
            [*NET, "--alloc-conf", "max_split_size_mb:10"],
            'alloc-conf "max_split_size_mb:10": CachingAllocator option max_split_size_mb too small, must be >= 20',
        ),
        (
            [*NET, "--alloc-conf", "expandable_segments"],
            "alloc-conf \"expandable_segments\": ends where ':' is expected",
        ),
        ([*NET, "--gpu", "A100"], "gpu 'A100': several have this name; say A100 PCIe 40GB, A100 SXM4 40GB"),
        ([*NET, "--gpu", "Voodoo 2"], "gpu 'Voodoo 2': none of the 49 in the table"),
        ([*NET, "--gpu", "MI300X"], "graphmem knows what CUDA's kernels and libraries allocate, not ROCm's"),
        ([*NET, "--gpu", "T4", "--device", "h100"], "device 'h100' and gpu 'T4' exclude each other"),
        ([*NET, "--device", "cpu", "--memory", "1GiB"], "memory 1,073,741,824: is about a GPU"),
        (
            [*NET, "--memory", "415MiB"],
            "415.00 MiB do not hold the model itself: parameters, buffers and inputs are 1.50 KiB, for which PyTorch reserves 2.00 MiB "
            "beside a CUDA context of 414.00 MiB; take a larger GPU or a smaller dtype",
        ),
        (
            [*NET, "--device", "cpu", "-o", "x.pickle"],
            "simulate is about CUDA's caching allocator; this was traced for CPU",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_a_size_that_is_none(tmp_path: Path) -> None:
    done = run(tmp_path, *NET, "--memory", "much")
    assert done.returncode == 2
    assert "'much' is no size; write it as 24GiB, 80GB or a number of bytes" in done.stderr


def test_a_snapshot_and_reserved_bytes_in_csv(tmp_path: Path) -> None:
    done = run(tmp_path, *NET, "--train", "--alloc-conf", "expandable_segments:True", "-o", "step.pickle", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert b"aten.addmm.default" in (tmp_path / "step.pickle").read_bytes()
    rows = list(csv.DictReader(io.StringIO(run(tmp_path, *NET, "--csv").stdout)))
    assert int(rows[0]["reserved"]) == 2 * 2**20
    assert int(rows[-1]["reserved"]) == 2 * 2**20 + 20 * 2**20  # and cuBLAS's workspace


def test_code_of_a_repository_is_refused(tmp_path: Path) -> None:
    config = {
        "model_type": "mystery",
        "auto_map": {"AutoModelForCausalLM": "modeling.Mystery"},
        "architectures": ["Mystery"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = run(tmp_path, str(tmp_path))
    assert done.returncode == 2
    assert "Python code in its own repository" in done.stderr


def test_zero_is_out_of_range(tmp_path: Path) -> None:
    done = run(tmp_path, "openai-community/gpt2", "--batch-size", "0")
    assert done.returncode == 2
    assert "0 is not in the range x>=1" in done.stderr
