"""Folding of identical layers."""

from __future__ import annotations

from graphmem.checkpoint import ModelSpec, TensorSpec
from graphmem.parameters.layers import fold_layers, spell_ranges
from graphmem.parameters.stored import stored_tensors
from tests.models import llama_tensors, tensor


def _titles(tensors: list[TensorSpec]) -> list[str]:
    stored, _ = stored_tensors(ModelSpec(tuple(tensors)))
    return [group.title for group in fold_layers(stored)[0]]


def test_identical_layers_fold() -> None:
    assert _titles(llama_tensors(32)) == ["model.layers.0-31 ×32"]


def test_mixed_layers_fold_by_kind() -> None:
    dense = [tensor(f"model.layers.{n}.mlp.up_proj.weight", 64, 64) for n in range(3)]
    sparse = [tensor(f"model.layers.{n}.mlp.experts.{e}.up_proj.weight", 8, 64) for n in range(3, 61) for e in range(2)]
    assert _titles(dense + sparse) == ["model.layers.0-2 ×3", "model.layers.3-60 ×58"]
    alternating = [tensor(f"l.{n}.attn.q_proj.weight", 64, 32 if n % 2 else 64) for n in range(8)]
    assert _titles(alternating) == ["l.0,2,…,6 ×4", "l.1,3,…,7 ×4"]


def test_encoder_and_decoder_are_two_stacks() -> None:
    both = [tensor(f"{side}.layers.{n}.fc1.weight", 4, 4) for side in ("encoder", "decoder") for n in range(2)]
    assert _titles(both) == ["encoder.layers.0-1 ×2", "decoder.layers.0-1 ×2"]


def test_what_is_numbered_but_no_stack() -> None:
    sequential = [tensor("head.0.weight", 4, 4), tensor("head.2.weight", 4, 4)]
    one = [tensor("model.layers.0.fc1.weight", 4, 4)]
    stored, _ = stored_tensors(ModelSpec((*sequential, *one)))
    groups, outside = fold_layers(stored)
    assert groups == ()
    assert len(outside) == 3


def test_dtypes_tell_layers_apart() -> None:
    mixed = [tensor(f"l.{n}.a.weight", 4, dtype="F32" if n == 1 else "BF16") for n in range(3)]
    assert _titles(mixed) == ["l.0,2 ×2", "l.1"]


def test_ranges() -> None:
    assert spell_ranges([0]) == "0"
    assert spell_ranges([0, 1, 2, 5]) == "0-2,5"
    assert spell_ranges([0, 2, 4, 6]) == "0,2,…,6"
    assert spell_ranges([0, 1, 4, 9]) == "0-1,4,9"
    assert spell_ranges([n * n for n in range(30)]).endswith(",…,841")
