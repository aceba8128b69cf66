"""Printed reports are golden files (`pytest --overwrite` writes them anew); printed totals equal the summed rows."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import graphmem
from graphmem.report import Column, Table
from graphmem.sources.catalog import catalog_ids
from graphmem.units import format_bytes, format_count, format_share, format_short_count
from graphmem.views import csv, html, markdown, terminal
from graphmem.views import json as json_view

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "phi-3-mini": ("microsoft/Phi-3-mini-128k-instruct", {"depth": 3}),
    "gpt2": ("openai-community/gpt2", {}),
    "gpt-oss-20b": ("openai/gpt-oss-20b", {}),
    "gemma-3-4b": ("google/gemma-3-4b-it", {}),
    "deepseek-v3": ("deepseek-ai/DeepSeek-V3", {}),
    "jamba": ("ai21labs/Jamba-v0.1", {}),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", {}),
    "t5-small": ("google-t5/t5-small", {}),
}


def _compare(name: str, text: str, overwrite: bool) -> None:
    path = GOLDEN / name
    if overwrite:
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("case", CASES)
def test_terminal(case: str, overwrite: bool) -> None:
    target, detail = CASES[case]
    report = graphmem.inspect(target, offline=True, **detail)
    _compare(f"{case}.txt", terminal.render(report, width=120, explain=True), overwrite)


def test_narrow(overwrite: bool) -> None:
    report = graphmem.inspect("openai-community/gpt2", offline=True)
    _compare("gpt2-40-columns.txt", terminal.render(report, width=40), overwrite)


def test_markdown(overwrite: bool) -> None:
    report = graphmem.inspect("microsoft/Phi-3-mini-128k-instruct", offline=True)
    _compare("phi-3-mini.md", markdown.render(report, explain=True), overwrite)


def test_json(overwrite: bool) -> None:
    report = graphmem.inspect("microsoft/Phi-3-mini-128k-instruct", offline=True)
    _compare("phi-3-mini.json", json_view.render(report), overwrite)


def test_csv(overwrite: bool) -> None:
    report = graphmem.inspect("openai-community/gpt2", offline=True, tensors=True)
    _compare("gpt2.csv", csv.render(report), overwrite)


def test_html_escapes_and_balances() -> None:
    report = graphmem.inspect("openai-community/gpt2", offline=True)
    page = html.page(report)
    for tag in ("table", "tr", "td", "th", "div", "ul", "li"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>")
    hostile = graphmem.Report("inspect", "<script>", "a & b", ())
    assert "<script>" not in html.render(hostile)


def _tables(report: graphmem.Report) -> list[Table]:
    return [table for section in report.sections for table in section.tables]


@pytest.mark.parametrize("id", catalog_ids())
def test_totals_are_the_sum_of_their_rows(id: str) -> None:
    report = graphmem.inspect(id, offline=True, tensors=True)
    for table in _tables(report):
        if table.total is None:
            continue
        for position, column in enumerate(table.columns):
            total = table.total[position]
            if column.unit == "text" or total is None:
                continue
            summed = sum(row[position] or 0 for row in table.rows)
            assert math.isclose(summed, total, rel_tol=1e-12), (table.key, column.key)
    for section in (s for s in report.sections if s.name != "all"):
        stored = section["bytes"]
        for key in ("components", "layers", "dtypes", "tensors"):
            table = section[key]
            assert isinstance(table, Table)
            column = [c.key for c in table.columns].index("bytes")
            assert table.total
            assert table.total[column] == stored


@pytest.mark.parametrize("id", catalog_ids())
def test_json_is_integers_and_round_trips(id: str) -> None:
    document = json.loads(json_view.render(graphmem.inspect(id, offline=True)), parse_constant=pytest.fail)
    for section in document["sections"]:
        for figure in section["figures"].values():
            assert figure["unit"] not in ("bytes", "count") or isinstance(figure["value"], int)
        for table in section["tables"].values():
            for row in table["rows"]:
                for key, value in row.items():
                    assert table["units"][key] not in ("bytes", "count") or value is None or isinstance(value, int)


@pytest.mark.parametrize("width", [1, 20, 33, 50, 79, 300])
def test_no_number_is_ever_cut(width: int) -> None:
    report = graphmem.inspect("microsoft/Phi-3-mini-128k-instruct", offline=True, tensors=True, depth=4)
    text = terminal.render(report, width=width)
    for number in ("1,207,959,552", "113,252,352", "432.02 MiB", "56.94 GiB"):
        assert number in text


def test_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 2**20 - 1, 2**30, 3 * 2**40)] == ["0 B", "1023 B", "1.00 KiB", "1,024.00 KiB", "1.00 GiB", "3.00 TiB"]  # fmt: skip
    assert (format_count(3821079552), format_short_count(3821079552), format_share(0.6323)) == ("3,821,079,552", "3.82 B", "63.23 %")  # fmt: skip


def test_a_table_is_records() -> None:
    table = Table("t", "T", (Column("a", "A"), Column("b", "B", "bytes")), (("x", 1), ("y", 2)), "read")
    assert list(table) == [{"a": "x", "b": 1}, {"a": "y", "b": 2}]
    assert len(table) == 2


def test_looking_up_what_is_not_there() -> None:
    report = graphmem.inspect("openai-community/gpt2", offline=True)
    with pytest.raises(KeyError, match="'params': section '' has parameters, trainable_parameters"):
        report["params"]
    with pytest.raises(KeyError, match="'unet': the sections are ''"):
        report.section("unet")
