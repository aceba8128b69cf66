"""graphmem.inspect(module) on live and meta modules."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import graphmem
from graphmem.errors import TargetError, UnsupportedError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32) for _ in range(3))
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.zeros(4, 4, dtype=torch.bool))


def test_counts_are_torchs_own() -> None:
    model = Tied()
    report = graphmem.inspect(model)
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert report["buffer_bytes"] == 16
    assert report["ties"].rows == (("embed.weight", "head.weight", 1600, "once"),)
    assert report.origin == "live module Tied"
    components = {row["component"]: row["parameters"] for row in report["components"]}
    assert components["embedding"] == 1600
    assert components["norm"] == 3 * 2 * 2 * 16
    assert components["attention"] == 3 * (4 * 16 * 16 + 4 * 16)
    assert components["mlp"] == 3 * (2 * 16 * 32 + 32 + 16)


def test_frozen_parameters_are_not_trainable() -> None:
    model = Tied()
    model.layers[0].requires_grad_(False)
    report = graphmem.inspect(model)
    assert report["trainable_parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_transformers_model_on_meta_with_its_config() -> None:
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    report = graphmem.inspect(model)
    assert report["parameters"] == model.num_parameters()
    assert report["kv_cache_bytes_per_token"] == 2 * 2 * 4 * 16 * 2


def test_classes_decide_where_names_do_not() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.LayerNorm(8)
            self.b = nn.Embedding(10, 8)

    components = {row["component"]: row["parameters"] for row in graphmem.inspect(Odd())["components"]}
    assert components == {"norm": 16, "embedding": 80}


def test_a_network_without_layers() -> None:
    report = graphmem.inspect(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2)))
    assert report["parameters"] == 8 * 27 + 8 + 16 + 18
    assert report["buffer_bytes"] == 64 + 8
    assert "kv_cache" not in [table.key for table in report.sections[0].tables]


def test_a_module_with_no_parameters() -> None:
    assert graphmem.inspect(nn.ReLU())["parameters"] == 0


def test_lazy_modules_say_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match="^weight: has no shape yet"):
        graphmem.inspect(nn.LazyLinear(4))


def test_not_a_module() -> None:
    with pytest.raises(TargetError, match="^int object: a target is a Hub id, a path, or a torch.nn.Module$"):
        graphmem.inspect(7)  # type: ignore[arg-type]


def test_reprs_are_the_report() -> None:
    report = graphmem.inspect(nn.Linear(4, 4))
    assert "Parameters: 20" in str(report)
    assert report._repr_html_().startswith("<style>")


def test_an_untied_head_is_not_tied_by_its_shape() -> None:
    model = Tied()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    report = graphmem.inspect(model)
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert "ties" not in [table.key for table in report.sections[0].tables]


def test_loaders_pack_by_class_whatever_the_names() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128))
    row = next(row for row in graphmem.inspect(model)["loaders"] if row["loader"] == "bitsandbytes LLM.int8()")
    assert (row["packed_bytes"], row["scale_bytes"], row["kept_bytes"]) == (
        256 * 256 + 256 * 128,
        4 * (256 + 128),
        2 * (256 + 128),
    )


def test_nothing_to_quantize_is_said() -> None:
    notes = graphmem.inspect(nn.Conv2d(3, 8, 3))["loading"].notes
    assert (
        "no linear weights that loaders quantize were recognised, so there is no table of quantizing loaders" in notes
    )


def test_training_charges_the_frozen_for_weights_only() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model[0].requires_grad_(False)
    row = graphmem.inspect(model)["training"].records()[0]
    assert (row["weight_bytes"], row["gradient_bytes"], row["optimizer_bytes"]) == (4 * 2 * 4096, 4 * 4096, 8 * 4096)


def test_a_class_is_not_a_module() -> None:
    with pytest.raises(TargetError, match=r"^Linear is a class; make one"):
        graphmem.inspect(nn.Linear)  # type: ignore[arg-type]
