"""``graphmem train`` as people type it: what it prints, its exit codes, and what it says of bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

MODELS = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(256, 1024), nn.Linear(1024, 256)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(8))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
"""
NET = ["models_here:Net", "--input", "float32[4096,256]"]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "models_here.py").write_text(MODELS)
    return subprocess.run(
        [sys.executable, "-m", "graphmem", "train", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "140", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_json_has_bytes_basis_and_stages(tmp_path: Path) -> None:
    done = run(tmp_path, *NET, "--gpu", "T4", "--recipe", "amp-fp16", "--compare-rules", "--json", "-q")
    assert done.returncode == 0
    assert not done.stderr
    found = json.loads(done.stdout)
    section = found["sections"][0]
    figures, tables = section["figures"], section["tables"]
    assert found["command"] == "train"
    assert figures["fits"]["value"] == "yes"
    assert figures["driver"]["basis"] == "calibrated"
    assert figures["peak"]["basis"] == "traced"
    assert [row["stage"] for row in tables["stages"]["rows"]] == ["model", "forward", "backward", "optimizer step"]
    assert max(row["later"] for row in tables["stages"]["rows"]) == figures["peak"]["value"]
    assert {row["kind"] for row in tables["peak_kinds"]["rows"]} >= {"parameter", "activation"}
    assert tables["peak_kinds"]["total"]["bytes"] == figures["peak"]["value"]
    assert {row["rule"] for row in tables["rules"]["rows"]} >= {"16Ψ", "accelerate estimate-memory"}
    levels = {row["level"]: row["bytes"] for row in tables["levels"]["rows"]}
    assert levels["nvidia-smi"] == levels["reserved"] + levels["CUDA context"]


def test_fits_is_the_exit_code(tmp_path: Path) -> None:
    enough = run(tmp_path, *NET, "--memory", "4GiB", "--fits", "-q")
    assert (enough.returncode, "Fits in 4.00 GiB: yes" in enough.stdout) == (0, True)
    short = run(tmp_path, *NET, "--memory", "600MiB", "--fits", "-q")
    assert (short.returncode, "Fits in 600.00 MiB: no" in short.stdout) == (1, True)
    assert "What would make it fit, the cheapest first" in short.stdout
    assert "--checkpointing layers" in short.stdout
    without = run(tmp_path, *NET, "--memory", "600MiB", "-q")
    assert without.returncode == 0
    nowhere = run(tmp_path, *NET, "--memory", "420MiB", "--fits", "-q")
    assert nowhere.returncode == 1
    assert "the model itself does not fit" in nowhere.stdout


def test_precisions_side_by_side(tmp_path: Path) -> None:
    done = run(tmp_path, *NET, "--by", "precision", "--json", "-q")
    rows = json.loads(done.stdout)["sections"][0]["tables"]["precisions"]["rows"]
    assert [row["recipe"] for row in rows] == ["fp32", "amp-bf16", "mixed", "bf16"]
    peaks = {row["recipe"]: row["peak"] for row in rows}
    assert peaks["bf16"] < peaks["mixed"]
    assert peaks["bf16"] < peaks["amp-bf16"] < peaks["fp32"]


def test_other_formats(tmp_path: Path) -> None:
    table = run(tmp_path, *NET, "--csv", "-q")
    assert next(iter(csv.reader(io.StringIO(table.stdout))))
    page = run(tmp_path, *NET, "-o", "train.html", "-q")
    assert page.returncode == 0
    assert "Stages" in (tmp_path / "train.html").read_text()
    snapshot = run(tmp_path, *NET, "-o", "train.pickle", "-q")
    assert snapshot.returncode == 0
    shown = subprocess.run(
        [sys.executable, "-m", "graphmem", "show", "train.pickle", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    whole = json.loads(run(tmp_path, *NET, "--json", "-q").stdout)["sections"][0]["figures"]
    assert json.loads(shown.stdout)["sections"][0]["figures"]["reserved"]["value"] == whole["reserved"]["value"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*NET, "--fits"], "--fits needs a GPU to fit on; add --gpu NAME or --memory SIZE"),
        ([*NET, "--gpu", "Voodoo 2"], "gpu 'Voodoo 2': none of the 49 in the table"),
        ([*NET, "--optimizer", "Adamm"], "optimizer 'Adamm': did you mean"),
        ([*NET, "--recipe", "fp17"], "recipe 'fp17': did you mean 'fp16'"),
        (
            [*NET, "--adapter", "lora", "--target-modules", "q_proj"],
            "match no module of Net; its linear layers are called up, down",
        ),
        ([*NET, "--adapter", "lora", "--rank", "0"], "rank 0: must be 1 or more"),
        ([*NET, "--load-in", "nf4"], "add an adapter (--adapter lora)"),
        ([*NET, "--checkpointing", "model"], "has no gradient_checkpointing_enable of its own; use 'layers'"),
        ([*NET, "--loss", "fused"], "Net is no causal language model"),
        ([*NET, "--batch-size", "2"], "--batch-size: for a model id"),
        ([*NET, "--packing"], "--packing: for a model id"),
        ([*NET, "--compile", "--offload"], "compile and offload together are not modelled"),
    ],
    ids=lambda value: " ".join(value[3:]) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_longer_sequence_than_the_model_has_positions_for(tmp_path: Path) -> None:
    beyond = run(tmp_path, "HuggingFaceTB/SmolLM2-135M", "--offline", "--seq-len", "4096", "-q", "--steps", "1")
    model = run(tmp_path, "HuggingFaceTB/SmolLM2-135M", "--offline", "--seq-len", "20000", "-q", "--steps", "1")
    assert beyond.returncode == model.returncode == 0
    assert "are more than the" in model.stdout
    table = run(tmp_path, "openai-community/gpt2", "--offline", "--seq-len", "2048")
    assert table.returncode == 2
    assert "the model has positions for 1024 tokens" in table.stderr
