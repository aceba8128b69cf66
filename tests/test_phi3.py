"""The published figures of Phi-3-mini-128k-instruct, as the Phi-3 page of the docs reconciles them."""

from __future__ import annotations

import graphmem
from graphmem.units import MIB, format_bytes


def _report() -> graphmem.Report:
    return graphmem.inspect("microsoft/Phi-3-mini-128k-instruct", offline=True, depth=3)


def test_components_and_layers() -> None:
    report = _report()
    assert report["parameters"] == 3_821_079_552
    assert {row["component"]: row["parameters"] for row in report["components"]} == {
        "embedding": 98_500_608,
        "attention": 1_207_959_552,
        "mlp": 2_415_919_104,
        "norm": 199_680,
        "head": 98_500_608,
    }
    layers = report["layers"].records()
    assert (layers[1]["layers"], layers[1]["each"], layers[1]["parameters"]) == (
        "model.layers.0-31 ×32",
        113_252_352,
        3_624_075_264,
    )
    assert sum(row["parameters"] for row in (layers[0], *layers[2:])) == 197_004_288
    assert round(report["components"].total[4] / MIB, 2) == 14_576.26


def test_loading_table() -> None:
    rows = {row["dtype"]: row for row in _report()["loading"]}
    printed = {
        dtype: [
            format_bytes(row[key])
            for key in ("largest_layer_bytes", "total_bytes", "adam_bytes")
            if row[key] is not None
        ]
        for dtype, row in rows.items()
    }
    assert printed == {
        "float32": ["432.02 MiB", "14.23 GiB", "56.94 GiB"],
        "float16/bfloat16": ["216.01 MiB", "7.12 GiB", "28.47 GiB"],
        "fp8": ["108.01 MiB", "3.56 GiB"],
        "int8": ["108.01 MiB", "3.56 GiB"],
        "int4": ["54.00 MiB", "1.78 GiB"],
    }


def test_the_published_attention_row_is_ours_plus_the_norms_it_swallowed() -> None:
    rows = {row["component"]: row["parameters"] for row in _report()["components"]}
    norms_named_after_attention = 32 * 3072
    assert rows["attention"] + norms_named_after_attention == 1_208_057_856
    assert rows["norm"] - norms_named_after_attention == 101_376


def test_tree() -> None:
    rows = _report()["tree"].records()
    assert [(row["module"], row["parameters"]) for row in rows[:5]] == [
        ("model", 3_722_578_944),
        ("  embed_tokens", 98_500_608),
        ("  layers", 3_624_075_264),
        ("    0-31 ×32", 3_624_075_264),
        ("  norm", 3_072),
    ]
