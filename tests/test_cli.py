"""The command line: streams, exit codes, formats, files."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import raw_file, safetensors_file, write_all
from tests.models import LLAMA_PARAMETERS, config_bytes, llama_tensors


def run(*args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graphmem", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        check=False,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_all(
        tmp_path / "model", {"config.json": config_bytes(), "model.safetensors": safetensors_file(llama_tensors())}
    )


def test_data_on_stdout_and_nothing_else(model: Path) -> None:
    done = run("inspect", str(model))
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith(f"{model}: local folder\n")
    assert "217,664" in done.stdout
    assert "\x1b" not in done.stdout


def test_an_error_is_one_line_on_stderr_and_exit_2(tmp_path: Path) -> None:
    raw_file(b"{", length=1).write(tmp_path / "x.safetensors")
    done = run("inspect", str(tmp_path / "x.safetensors"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("graphmem: x.safetensors: the header is not valid JSON")
    shown = run("inspect", str(tmp_path / "x.safetensors"), "--debug")
    assert "Traceback" in shown.stderr
    assert shown.stdout == ""


def test_an_unexpected_error_is_ours_and_says_so(tmp_path: Path) -> None:
    program = "import graphmem.api as a, sys\ndef broken(*x, **y): raise ZeroDivisionError('boom')\na.inspect = broken\nsys.argv = ['graphmem', 'inspect', 'x']\nfrom graphmem.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert (
        done.stderr
        == "graphmem: internal error, ZeroDivisionError: boom; run again with --debug and report the traceback\n"
    )


def test_an_interrupt(tmp_path: Path) -> None:
    program = "import graphmem.api as a, sys\ndef broken(*x, **y): raise KeyboardInterrupt\na.inspect = broken\nsys.argv = ['graphmem', 'inspect', 'x']\nfrom graphmem.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error(model: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m graphmem inspect {model} --tensors | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{model}: local folder\n"
    assert done.stderr == ""


def test_json(model: Path) -> None:
    document = json.loads(run("inspect", str(model), "--json").stdout)
    assert document["schema_version"] == 1
    assert document["sections"][0]["figures"]["parameters"] == {
        "value": LLAMA_PARAMETERS,
        "unit": "count",
        "basis": "read",
        "explain": "",
    }
    tables = document["sections"][0]["tables"]
    assert (
        sum(row["bytes"] for row in tables["components"]["rows"])
        == tables["components"]["total"]["bytes"]
        == 2 * LLAMA_PARAMETERS
    )


def test_csv_has_every_tensor(model: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("inspect", str(model), "--csv").stdout)))
    assert len(rows) == len(llama_tensors())
    assert sum(int(row["parameters"]) for row in rows) == LLAMA_PARAMETERS


@pytest.mark.parametrize(
    ("name", "begins"),
    [("r.json", "{"), ("r.csv", "section,tensor,"), ("r.md", "# "), ("r.txt", "/"), ("r.html", "<!doctype html>")],
)
def test_o_picks_the_format_by_extension(model: Path, tmp_path: Path, name: str, begins: str) -> None:
    done = run("inspect", str(model), "-o", str(tmp_path / name))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"graphmem: wrote {tmp_path / name}\n"
    assert (tmp_path / name).read_text().startswith(begins)
    assert run("inspect", str(model), "-q", "-o", str(tmp_path / name)).stderr == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "r.xyz"], "-o r.xyz: the extension says the format; use one of .json, .csv, .md, .txt, .html"),
        (["-o", "r.json", "--csv"], "-o r.json is json by its extension, but --csv asks for csv; drop one of them"),
        (
            ["-o", "nowhere/r.json"],
            "-o nowhere/r.json: the folder nowhere does not exist; name a file that can be written",
        ),
        (["-o", "folder.json"], "-o folder.json: is a folder; name a file that can be written"),
    ],
)
def test_an_output_that_cannot_be(model: Path, tmp_path: Path, args: list[str], message: str) -> None:
    (tmp_path / "folder.json").mkdir()
    done = run("inspect", str(model), *args, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"graphmem: {message}\n")


def test_a_read_only_place(model: Path) -> None:
    done = run("inspect", str(model), "-o", "/proc/r.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("graphmem: -o /proc/r.json: cannot be written")


def test_nothing_half_written(model: Path, tmp_path: Path) -> None:
    run("inspect", str(model), "-o", str(tmp_path / "r.json"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "r.json"]


@pytest.mark.parametrize("width", ["20", "40", "60", "80", "200"])
def test_any_width_keeps_numbers_whole(model: Path, width: str) -> None:
    out = run("inspect", str(model), "--tensors", "--depth", "2", env={"COLUMNS": width}).stdout
    assert "217,664" in out
    assert "…" not in out.replace("0,2,…", "")


def test_explain_shows_the_arithmetic(model: Path) -> None:
    assert "= 4 full layers × 2 (K and V) × 2 KV heads × 16 × 2 B" in run("inspect", str(model), "--explain").stdout
    assert "KV heads" not in run("inspect", str(model)).stdout


def test_usage_errors_and_help() -> None:
    assert run("inspect").returncode == 2
    assert run("inspect", "gpt2", "--depth", "0").returncode == 2
    assert run("nonsense").returncode == 2
    assert "inspect" in run("--help").stdout
    assert run("--version").stdout == "graphmem, version 0.1.0\n"


def test_completion_is_clicks_own() -> None:
    done = run(env={"_GRAPHMEM_COMPLETE": "bash_source"})
    assert "_graphmem_completion" in done.stdout


def test_a_pipe_and_a_link_stay_what_they_are(model: Path, tmp_path: Path) -> None:
    """Never replaced: written into (a named pipe, a device) or through (a link)."""
    pipe, real, link = tmp_path / "p.json", tmp_path / "real.json", tmp_path / "link.json"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    assert run("inspect", str(model), "-o", str(pipe)).returncode == 0
    assert json.loads(reader.communicate(timeout=20)[0])["command"] == "inspect"
    assert pipe.is_fifo()
    real.write_text("old")
    link.symlink_to(real)
    assert run("inspect", str(model), "-o", str(link)).returncode == 0
    assert link.is_symlink()
    assert json.loads(real.read_text())["command"] == "inspect"


def test_flags_that_exclude_each_other(model: Path) -> None:
    done = run("inspect", str(model), "--json", "--csv")
    assert (done.returncode, done.stderr) == (2, "graphmem: --json and --csv exclude each other; use one\n")


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_poor_encoding_replaces_characters_and_keeps_numbers(model: Path, env: dict[str, str]) -> None:
    done = run("inspect", str(model), env=env)
    assert done.returncode == 0
    assert "217,664" in done.stdout


@pytest.mark.parametrize(
    ("redirect", "code", "says"),
    [
        (">&-", 2, "standard output is closed; use -o FILE"),
        ("2>&-", 0, ""),
        (">/dev/full", 2, "standard output cannot be written (No space left"),
    ],
)
def test_closed_and_full_streams(model: Path, redirect: str, code: int, says: str) -> None:
    command = f"{sys.executable} -m graphmem inspect {model} {redirect}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_revision_of_a_folder_is_refused(model: Path) -> None:
    done = run("inspect", str(model), "--revision", "v1")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"graphmem: {model} is here on disk, where there are no revisions; drop --revision, or give a Hub id\n"
    )
