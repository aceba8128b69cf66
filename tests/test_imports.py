"""The import direction of the design, what stays unimported, and the public names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import graphmem

ROOT = Path(graphmem.__file__).parent

#: Rooms by level: a room may import only from levels before its own (and from itself).
LEVELS = [
    {"units", "errors", "config"},
    {"dtypes", "workload", "hardware"},
    {"checkpoint"},
    {"report"},
    {"timeline"},
    {"parameters"},
    {"catalog"},
    {"inference"},
    {"sources"},
    {"tracing"},
    {"published"},
    {"training"},
    {"parallel"},
    {"snapshots"},
    {"measuring"},
    {"inspection"},
    {"engines"},
    {"views"},
    {"api"},
    {"cli"},
    {"__init__", "__main__"},
]
#: The generator rebuilds the catalog from built models: a tool beside the package's line, imported by nothing.
TOOLS = {"catalog/generate.py"}
#: report.py shows itself in notebooks through a view, imported when asked; views know report and units only.
LATE = {("report", "views")}
VIEWS_MAY = {"views", "report", "units"}


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(source: str) -> set[str]:
    """Rooms of graphmem that a file imports, at its top or later; type-only imports do not count."""
    tree = ast.parse(source)
    type_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in type_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "graphmem":
            found |= {_room(node.module)} if "." in node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            # `import graphmem` alone loads no room: its names are lazy.
            found |= {_room(alias.name) for alias in node.names if alias.name.startswith("graphmem.")}
    return found


def violations(files: dict[str, str]) -> list[str]:
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    wrong = []
    for path, source in files.items():
        room = path.split("/")[0].removesuffix(".py")
        for other in imports(source):
            late = (room, other) in LATE
            if (
                not late
                and other != room
                and (level[other] >= level[room] or (room == "views" and other not in VIEWS_MAY))
            ):
                wrong.append(f"{path} imports {other}")
    return wrong


def test_the_direction_holds() -> None:
    files = {p.relative_to(ROOT).as_posix(): p.read_text() for p in ROOT.rglob("*.py")}
    assert violations({path: source for path, source in files.items() if path not in TOOLS}) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("views/x.py", "from graphmem.checkpoint import ModelSpec"),
        ("parameters/x.py", "def f():\n    from graphmem.sources.load import load"),
        ("units.py", "import graphmem.api"),
        ("inspection.py", "from graphmem import cli"),
    ],
)
def test_the_check_can_fail(path: str, source: str) -> None:
    assert violations({path: source})


def _loaded(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    return set(run.stdout.split())


HEAVY = {"torch", "transformers", "numpy", "diffusers"}
INSPECT = "import graphmem; r = graphmem.inspect('gpt2', offline=True); str(r); r._repr_html_()"


def test_import_is_free() -> None:
    loaded = _loaded("import graphmem")
    assert not loaded & HEAVY
    assert not {name for name in loaded if name.startswith(("rich", "click", "huggingface_hub", "graphmem.sources"))}


def test_inspect_needs_neither_torch_nor_transformers() -> None:
    assert not _loaded(INSPECT) & HEAVY


def test_that_test_can_fail() -> None:
    assert _loaded(f"{INSPECT}; import torch") & HEAVY == {"torch", "numpy"}


def test_public_names() -> None:
    assert set(dir(graphmem)) == {
        "Device", "Estimate", "Figure", "GraphmemError", "Report", "Scratch", "Section", "Table", "Trace", "TrainingRun", "__version__", "fit_formula", "infer", "inspect",
        "load_trace", "measure", "plan", "rule", "show", "trace", "train",
    }  # fmt: skip
    assert all(getattr(graphmem, name) is not None for name in graphmem.__all__)
    with pytest.raises(AttributeError, match="module 'graphmem' has no attribute 'estimate'"):
        _ = graphmem.estimate


def test_every_public_name_is_documented() -> None:
    assert all(getattr(graphmem, name).__doc__ for name in graphmem.__all__ if name != "__version__")
