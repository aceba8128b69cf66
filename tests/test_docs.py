"""The docs show real output: each ``$ graphmem …`` block is run again and compared (`pytest --overwrite` writes it anew)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import graphmem
from graphmem.hardware.gpus import gpus
from graphmem.sources.catalog import catalog_ids
from graphmem.units import format_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
_BLOCK = re.compile(r"```console\n(?P<body>\$ graphmem .*?)```", re.S)


def _run(command: str) -> str:
    """What a line prints, in a shell, for its pipes."""
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "COLUMNS": "110", "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, check=True, cwd=ROOT
    )
    assert done.stdout, f"{command}: {done.stderr}"
    return done.stdout


def _rerun(block: re.Match[str]) -> str:
    """The commands of a block, each with what it prints now."""
    commands = [line for line in block["body"].splitlines() if line.startswith("$ graphmem ")]
    return "```console\n" + "".join(f"{line}\n{_run(line.removeprefix('$ '))}" for line in commands) + "```"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_console_blocks_are_real(page: Path, overwrite: bool) -> None:
    fresh = _BLOCK.sub(_rerun, page.read_text())
    if overwrite:
        page.write_text(fresh)
    assert fresh == page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_pictures_are_drawn_from_simulations(overwrite: bool) -> None:
    from tests.pictures import FOLDER, pictures

    for name, svg in pictures().items():
        if overwrite:
            (FOLDER / name).write_text(svg)
        assert (FOLDER / name).read_text() == svg


def test_readme_has_exactly_two_set_up_commands() -> None:
    commands = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("graphmem inspect microsoft/Phi-3-mini-128k-instruct")
    assert commands[1].endswith("python -m pytest -n 2 --dist loadfile")


def test_the_readme_counts_the_catalog_rightly() -> None:
    counts = re.findall(
        r"catalog of (\d+) models", (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    )
    assert set(counts) == {str(len(catalog_ids()))}


def test_every_page_counts_the_gpus_rightly() -> None:
    text = "".join(page.read_text() for page in [*PAGES, ROOT / "CHANGELOG.md"])
    counts = re.findall(r"(?:of the \[|table of |hardware\.md\): )(\d+) GPUs", text)
    assert len(counts) >= 3
    assert set(counts) == {str(len(gpus()))}


def _catalog_page() -> str:
    lines = [
        "# Catalog",
        "",
        f"The {len(catalog_ids())} models that graphmem knows without a network (`--offline`, or when the Hub cannot be reached), with what their totals were held against.",
        "",
        "| model | parameters | stored | |",
        "|:--|--:|--:|:--|",
    ]
    for id in catalog_ids():
        report = graphmem.inspect(id, offline=True)
        notes = "; ".join(report.notes).replace("|", "/")
        lines.append(f"| {id} | {report['parameters']:,} | {format_bytes(report['bytes'])} | {notes} |")
    return "\n".join(lines) + "\n"


def test_the_catalog_page_lists_the_catalog(overwrite: bool) -> None:
    page = ROOT / "docs" / "catalog.md"
    if overwrite:
        page.write_text(_catalog_page())
    assert page.read_text() == _catalog_page()


def test_the_json_page_names_every_figure_and_table() -> None:
    page = (ROOT / "docs" / "json.md").read_text()
    for id in (
        "openai/gpt-oss-20b",
        "openai-community/gpt2",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "google-t5/t5-small",
    ):
        for section in graphmem.inspect(id, offline=True, depth=1, tensors=True).sections:
            for figure in section.figures:
                assert f"| `{figure.key}` | {figure.unit} |" in page
            for table in section.tables:
                row = next(line for line in page.splitlines() if line.startswith(f"| `{table.key}` |"))
                assert [c.key for c in table.columns if f"`{c.key}`" not in row] == []
