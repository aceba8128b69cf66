"""Published formulas against the figures their own texts print; nothing here is ours."""

from __future__ import annotations

import pytest

from graphmem.published import rules
from graphmem.published.compare import Found, comparison

GB, GIB, MIB = 10**9, 2**30, 2**20


def test_mixed_precision_adam_is_16_bytes_a_parameter() -> None:
    """ZeRO, section 3.1: GPT-2 of 1.5 B parameters, 3 GB in fp16, takes at least 24 GB to train."""
    assert rules.mixed_precision_adam(1_500_000_000) == 24 * GB


@pytest.mark.parametrize(("bits", "gigabytes"), [(16, 168), (8, 84), (4, 42)])
def test_the_rule_with_twenty_percent(bits: int, gigabytes: int) -> None:
    """Llama-70B: 168 GB at 16 bits, as the article has it; at 8 bits the formula gives 84, the article's example 21."""
    assert rules.loaded(70_000_000_000, bits) == gigabytes * GB
    assert rules.loaded_divided_twice(70_000_000_000, 8) == 21 * GB


def test_training_as_four_inferences() -> None:
    """7 B parameters in fp32: 112 GB."""
    assert rules.training_as_inferences(7_000_000_000, 4) == 112 * GB


def test_activations_of_gpt2_1_5b() -> None:
    """ZeRO, section 3.2: about 60 GB at 1,000 tokens, batch 32: twelve numbers of 16 bit a token, layer and width."""
    assert rules.gpt2_activations(1024, 32, 1600, 48) / GB == pytest.approx(60, rel=0.01)


def test_activations_of_a_layer() -> None:
    """Korthikanti et al. 2022, table 2 and section 4.1: GPT-3's layer (s 2048, b 1, h 12288, a 96)."""
    s, b, h, a = 2048, 1, 12288, 96
    assert rules.training_activations(s, b, h, a, 1) == s * b * h * 34 + 5 * a * s * s * b
    # As the paper writes it: sbh (34 + 5 as/h).
    assert rules.training_activations(s, b, h, a, 1) == pytest.approx(s * b * h * (34 + 5 * a * s / h))
    assert (
        rules.inference_activations(s, b, h, a) == 10 * s * b * h + 4 * a * s * s * b + 18 * s * b * h + 4 * s * b * h
    )


PHI_3 = 3_821_079_552


def test_accelerates_stages_for_phi_3() -> None:
    """An article's table for Phi-3-mini with Adam, in GiB: fp32 14.23, 14.23, 28.47, 56.94; 16 bit 7.12, 10.68, 14.23, 14.23.

    (The article prints the 16-bit row for a model loaded in fp32: 14.23, 21.35, 28.47, 28.47.)
    """
    stages = rules.accelerate_stages(4 * PHI_3, "float32")
    assert stages is not None
    assert [round(value / GIB, 2) for value in (stages.model, stages.gradients, stages.backward, stages.step)] == [
        14.23,
        14.23,
        28.47,
        56.94,
    ]
    mixed = rules.accelerate_stages(4 * PHI_3, "bfloat16")
    assert mixed is not None
    assert [round(value / GIB, 2) for value in (mixed.model, mixed.gradients, mixed.backward, mixed.step)] == [
        14.23,
        21.35,
        28.47,
        28.47,
    ]
    assert rules.accelerate_stages(PHI_3, "int8") is None


def test_accelerate_itself_says_the_same() -> None:
    accelerate = pytest.importorskip("accelerate.commands.estimate")
    for dtype in ("float32", "float16", "bfloat16"):
        said = accelerate.estimate_training_usage(4 * PHI_3, dtype)
        ours = rules.accelerate_stages(4 * PHI_3, dtype)
        assert ours is not None
        assert (said["model"], said["gradients"], said["optimizer"], said["step"]) == (
            ours.model,
            ours.gradients,
            ours.backward,
            ours.step,
        )


def test_states_of_mixtral_and_llama() -> None:
    """AdamW of Mixtral-8x22B (141 B): both moments in fp32 1050.53 GiB, master weights 525.27, fp16 gradients 262.63; Llama-3-70B in bf16 130.4."""
    mixtral = 141_000_000_000
    assert [round(mixtral * width / GIB, 2) for width in (8, 4, 2)] == [1050.53, 525.27, 262.63]
    assert round(70_000_000_000 * 2 / GIB, 1) == 130.4


def test_comparison_says_how_far_a_rule_is_off() -> None:
    found = Found(1000, 2000, 16_000, 1, 32_000, "bfloat16")
    rows = {row["rule"]: row for row in comparison(found).records()}
    assert rows["16Ψ"]["error"] == 0
    assert rows["4 × inference"]["says"] == 8000
    assert rows["4 × inference"]["error"] == -0.75
    assert rows["P × 4 B × 1.2 / (32/Q)"]["error"] == pytest.approx(0.2)
    assert "L(34sbh + 5as²b)" not in rows
