"""The GPU table: its figures, their sources, the names it answers to; what a CUDA context takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from graphmem.errors import GraphmemError, UnsupportedError
from graphmem.hardware.context import context_of, overall_context
from graphmem.hardware.gpus import Gpu, gpu_named, gpus
from graphmem.units import GIB, MIB
from tests.conftest import SHARED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "hardware.md"
FIGURES = ("nvidia_smi_bytes", "torch_total", "capability", "sms", "bandwidth")
by_name = {gpu.name: gpu for gpu in gpus()}
every_gpu = pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
contexts: dict[str, Any] = json.loads((files("graphmem.hardware") / "context.json").read_text("utf-8"))


# Figures.


def test_there_are_many_and_each_once() -> None:
    assert len(gpus()) == len(by_name) >= 40
    assert gpus() is gpus()


@every_gpu
def test_every_figure_has_a_source_and_nothing_else_has(gpu: Gpu) -> None:
    assert set(gpu.sources) == {figure for figure in FIGURES if getattr(gpu, figure) is not None}
    for source in gpu.sources.values():
        assert len(source) > 5
        assert not re.search(r"unsourced|general knowledge|index id|no log|not applicable", source)


@every_gpu
def test_torch_sees_less_than_nvidia_smi_and_no_more_than_was_sold(gpu: Gpu) -> None:
    if gpu.torch_total is not None:
        low, high = gpu.torch_total
        assert 0.9 * high < low <= high
        assert gpu.capacity == low
        if gpu.nvidia_smi_bytes is not None:
            assert 0.95 * gpu.nvidia_smi_bytes < low
            assert high < gpu.nvidia_smi_bytes
    assert 0.9 * gpu.sold_gb * 10**9 < gpu.capacity <= gpu.sold_gb * GIB


@every_gpu
def test_figures_are_of_a_gpu(gpu: Gpu) -> None:
    major, minor = gpu.capability
    assert 6 <= major <= 12
    assert 0 <= minor <= 9
    assert gpu.sms is None or 10 <= gpu.sms <= 304
    assert gpu.bandwidth is None or 2 * 10**11 <= gpu.bandwidth <= 8 * 10**12
    assert gpu.vendor == ("AMD" if "MI" in gpu.name else "NVIDIA")
    hash(gpu)


def test_capacity_says_what_it_is() -> None:
    h100 = by_name["H100 SXM5 80GB"]
    assert h100.torch_total == (int(79.1 * GIB), int(79.33 * GIB))
    assert (h100.capacity, h100.capability, h100.sms, h100.bandwidth) == (int(79.1 * GIB), (9, 0), 132, 3350 * 10**9)
    assert h100.capacity_basis == "the least total torch was seen to report"
    a30 = by_name["A30"]
    assert a30.torch_total is None
    assert a30.capacity == a30.nvidia_smi_bytes == 24576 * MIB
    assert a30.capacity_basis == "nvidia-smi's total: torch's own, 0 to 4 % less, is not known"


def test_the_share_that_basis_names_is_that_of_the_table() -> None:
    shares = [1 - gpu.capacity / gpu.nvidia_smi_bytes for gpu in gpus() if gpu.torch_total and gpu.nvidia_smi_bytes]
    assert 0 < min(shares) < 0.005
    assert 0.035 < max(shares) < 0.04


def test_without_any_total_there_is_no_capacity() -> None:
    gpu = Gpu("X", None, None, (9, 0), None, None, {}, "", (), 80)
    with pytest.raises(UnsupportedError, match=r"^gpu 'X': no total of its memory is known$"):
        _ = gpu.capacity


# Names.


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100", "H100 SXM5 80GB"), ("H100-80GB", "H100 SXM5 80GB"), ("h100 sxm", "H100 SXM5 80GB"), ("H100 PCIe", "H100 PCIe 80GB"),
        ("h100_nvl", "H100 NVL 94GB"), ("rtx4090", "RTX 4090"), ("4090", "RTX 4090"), ("4090 24 GiB", "RTX 4090"), ("3090 ti", "RTX 3090 Ti"),
        ("a100-80gb", "A100 SXM4 80GB"), ("A100-40GB", "A100 SXM4 40GB"), ("a100 pcie 40gb", "A100 PCIe 40GB"), ("A10G", "A10G"), ("a10", "A10"),
        ("l40", "L40"), ("l40s", "L40S"), ("L40S-48GB", "L40S"), ("t4", "T4"), ("b200", "B200"), ("h200", "H200 141GB"), ("h20", "H20 96GB"),
        ("mi300x", "AMD MI300X"), ("a6000", "RTX A6000"), ("6000 ada", "RTX 6000 Ada"), ("rtx pro 6000", "RTX PRO 6000 Blackwell"), ("v100-16gb", "V100 SXM2 16GB"),
        ("3060", "RTX 3060 12GB"), ("gh200", "GH200 96GB"), ("a16", "A16 (per GPU)"), ("2080ti", "RTX 2080 Ti"),
    ],
)  # fmt: skip
def test_names_that_people_use(text: str, name: str) -> None:
    assert gpu_named(text).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4 80GB"), ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"), ("A100-PCIE-40GB", "A100 PCIe 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"), ("NVIDIA H100 NVL", "H100 NVL 94GB"), ("NVIDIA GH200 480GB", "GH200 96GB"),
        ("Tesla T4", "T4"), ("Tesla V100-SXM2-32GB", "V100 SXM2 32GB"), ("Tesla P100-PCIE-16GB", "P100 PCIe 16GB"), ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"), ("Quadro RTX 8000", "Quadro RTX 8000"), ("AMD Instinct MI355X", "AMD MI355X"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Blackwell"),
    ],
)  # fmt: skip
def test_names_that_drivers_print(text: str, name: str) -> None:
    assert gpu_named(text).name == name


@every_gpu
def test_its_own_name_finds_it(gpu: Gpu) -> None:
    assert gpu_named(gpu.name) is gpu
    assert gpu_named(gpu.name.lower().replace(" ", "-")) is gpu


ERRORS = {
    "a100": "gpu 'a100': several have this name; say A100 PCIe 40GB, A100 SXM4 40GB, A100 PCIe 80GB or A100 SXM4 80GB",
    "V100": "gpu 'V100': several have this name; say V100 SXM2 16GB or V100 SXM2 32GB",
    "RTX 6000": "gpu 'RTX 6000': none of the 49 in the table; did you mean RTX A6000, RTX 6000 Ada or RTX PRO 6000 Blackwell?",
    "4060 ti": "gpu '4060 ti': none of the 49 in the table; did you mean RTX 4060 Ti 16GB?",
    "4080 super": "gpu '4080 super': none of the 49 in the table; did you mean RTX 4070 Ti SUPER or RTX 4080?",
    "abacus": "gpu 'abacus': none of the 49 in the table; docs/hardware.md lists them",
    "": "gpu '': none of the 49 in the table; docs/hardware.md lists them",
}


@pytest.mark.parametrize("text", ERRORS)
def test_an_error_is_one_line_that_names_what_is_close(text: str) -> None:
    with pytest.raises(GraphmemError) as caught:
        gpu_named(text)
    assert str(caught.value) == ERRORS[text]


def test_a_wrong_size_is_no_match() -> None:
    with pytest.raises(GraphmemError, match=r"did you mean .*H100 SXM5 80GB"):
        gpu_named("h100-40gb")


# Contexts.


@every_gpu
def test_a_context_is_a_range_within_that_of_all(gpu: Gpu) -> None:
    context = context_of(gpu)
    assert round(82.3 * MIB) <= context.low <= context.median <= context.high <= 768 * MIB
    assert context.low < context.high
    assert context.source.startswith("out-of-memory messages: in use − allocated − reserved; ")


def test_own_messages_come_first_and_one_is_no_range() -> None:
    t4 = context_of(by_name["T4"])
    assert (t4.low, t4.median, t4.high, t4.samples) == (*(round(mib * MIB) for mib in (95.8, 133.1, 163.9)), 5)
    assert t4.source == "out-of-memory messages: in use − allocated − reserved; 5 of T4"
    l40 = context_of(by_name["L40"])
    assert (l40.low, l40.median, l40.high, l40.samples) == (*(round(mib * MIB) for mib in (82.3, 506.6, 768.0)), 1)
    assert l40.source == "out-of-memory messages: in use − allocated − reserved; 1 of L40, the range of all 84"
    b300 = context_of(by_name["B300"])
    assert (b300.low, b300.median, b300.high, b300.samples) == (*(round(mib * MIB) for mib in (82.3, 414.0, 768.0)), 0)
    assert (
        b300.source == "out-of-memory messages: in use − allocated − reserved; all 84 of NVIDIA GPUs, none of this one"
    )


def test_the_range_of_all_serves_a_gpu_that_is_not_named() -> None:
    all_of_them, b300 = overall_context(), context_of(by_name["B300"])
    assert (all_of_them.low, all_of_them.median, all_of_them.high) == (b300.low, b300.median, b300.high)
    assert all_of_them.samples == 84
    assert all_of_them.source == "out-of-memory messages: in use − allocated − reserved; all 84 of NVIDIA GPUs"


def test_the_range_of_all_is_that_of_the_rows() -> None:
    rows, everything = contexts["rows"], contexts["all"]
    assert sum(row["n"] for row in rows) == everything["n"] == 84
    assert min(row["min_mib"] for row in rows) == everything["min_mib"]
    assert max(row["max_mib"] for row in rows) == everything["max_mib"]
    named = [name for row in rows for name in row["gpus"]]
    assert len(named) == len(set(named))
    assert set(named) <= set(by_name)


# Against the collected facts, where they are.

#: Torch totals that are left out, and why.
LEFT_OUT = {
    "A10": ({23.7}, "ECC off"),
    "RTX 3090": ({24.0}, "Windows"),
    "RTX 4090": ({23.99}, "Windows"),
    "RTX 5080": ({15.92}, "Windows"),
    "RTX 6000 Ada": ({44.43}, "ECC on"),
}
#: No capacity that torch could use is known for them (the M5 Pro: of one machine), and no CUDA capability.
NO_ROW = re.compile(r"Gaudi|Apple")


@pytest.fixture
def collected() -> list[dict[str, Any]]:
    path = SHARED / "hardware" / "gpus.jsonl"
    if not path.exists():
        pytest.skip("no ../shared/hardware beside the checkout")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_collected_gpu_has_a_row(collected: list[dict[str, Any]]) -> None:
    assert [row["name"] for row in collected if not NO_ROW.search(row["name"])] == list(by_name)


def test_figures_equal_those_collected(collected: list[dict[str, Any]]) -> None:
    for row in collected:
        if NO_ROW.search(row["name"]):
            continue
        gpu = by_name[row["name"]]
        smi, totals = row["memory_total_MiB_nvidia_smi"], {row["memory_total_GiB_torch"]}
        totals = {*totals, *row["memory_total_GiB_torch_other"]} - {None} - LEFT_OUT.get(gpu.name, (set(), ""))[0]
        assert gpu.nvidia_smi_bytes == (smi and smi * MIB), gpu.name
        assert gpu.torch_total == ((int(min(totals) * GIB), int(max(totals) * GIB)) if totals else None), gpu.name
        assert f"{gpu.capability[0]}.{gpu.capability[1]}" in row["compute_capability"], gpu.name
        for figure, key, unit in (("sms", "sm_count", 1), ("bandwidth", "memory_bandwidth_GBps", 10**9)):
            value = getattr(gpu, figure)
            if value is not None:
                assert value == row[key] * unit, (gpu.name, figure)
            else:
                source = row["sources"]["bandwidth" if figure == "bandwidth" else "sm_count"]
                assert "unsourced" in source or row[key] is None, (gpu.name, figure)


def test_what_is_left_out_is_explained() -> None:
    for name, (_, why) in LEFT_OUT.items():
        assert why in by_name[name].note
        assert "left out" in by_name[name].note


def test_contexts_equal_those_collected(collected: list[dict[str, Any]]) -> None:
    lines = (SHARED / "hardware" / "context.jsonl").read_text("utf-8").splitlines()
    medians = [row for row in map(json.loads, lines) if row["type"] == "median"]
    ours = [tuple(row[key] for key in ("n", "min_mib", "median_mib", "max_mib")) for row in contexts["rows"]]
    everything = tuple(contexts["all"][key] for key in ("n", "min_mib", "median_mib", "max_mib"))
    assert [*ours, everything] == [
        tuple(row[key] for key in ("n", "min_MiB", "median_MiB", "max_MiB")) for row in medians
    ]


# The page.


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _total(gpu: Gpu) -> str:
    if gpu.torch_total is None:
        return "–"
    low, high = (f"{size / GIB:.2f}" for size in gpu.torch_total)
    return low if low == high else f"{low}–{high}"


def _gpu_lines() -> Iterator[str]:
    yield "| GPU | torch total, GiB | nvidia-smi, MiB | capability | SMs | GB/s |"
    yield "|:--|--:|--:|--:|--:|--:|"
    for gpu in gpus():
        smi = None if gpu.nvidia_smi_bytes is None else gpu.nvidia_smi_bytes / MIB
        speed = None if gpu.bandwidth is None else gpu.bandwidth / 10**9
        capability = ".".join(map(str, gpu.capability))
        yield f"| {gpu.name} | {_total(gpu)} | {_number(smi)} | {capability} | {_number(gpu.sms)} | {_number(speed)} |"


def _name_lines() -> Iterator[str]:
    yield "| GPU | also |"
    yield "|:--|:--|"
    for gpu in gpus():
        if gpu.aliases:
            yield f"| {gpu.name} | {', '.join(gpu.aliases)} |"


def _context_lines() -> Iterator[str]:
    yield "| messages of | messages | least, MiB | median, MiB | most, MiB |"
    yield "|:--|--:|--:|--:|--:|"
    for row in [*contexts["rows"], {"of": "all", **contexts["all"]}]:
        yield f"| {row['of']} | {row['n']} | {row['min_mib']:.0f} | {row['median_mib']:.0f} | {row['max_mib']:.0f} |"


BLOCKS: dict[str, Callable[[], Iterable[str]]] = {
    "gpus": _gpu_lines,
    "notes": lambda: (f"- {gpu.name}: {gpu.note}" for gpu in gpus() if gpu.note),
    "names": _name_lines,
    "errors": lambda: ("```", *(ERRORS[text] for text in ("a100", "RTX 6000")), "```"),
    "contexts": _context_lines,
}


@pytest.mark.parametrize("block", BLOCKS)
def test_the_page_shows_the_table(block: str, overwrite: bool) -> None:
    """`pytest --overwrite` writes it anew."""
    pattern = re.compile(rf"(?<=<!-- {block} -->\n).*?(?=<!-- end -->)", re.S)
    fresh = "".join(f"{line}\n" for line in BLOCKS[block]())
    if overwrite:
        PAGE.write_text(pattern.sub(lambda _: fresh, PAGE.read_text("utf-8"), count=1), "utf-8")
    assert pattern.findall(PAGE.read_text("utf-8")) == [fresh]
