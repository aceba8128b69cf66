"""The built-in catalog: every entry against the figures others published, and its table against a fresh build."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphmem
from graphmem.catalog.generate import tensors_of
from graphmem.catalog.table import compress, expand
from graphmem.checkpoint import TensorSpec
from graphmem.dtypes import SAFETENSORS
from graphmem.sources.build import build_model
from graphmem.sources.catalog import catalog_ids, find, read_catalog
from tests.models import llama_tensors, tensor

#: Entries whose published figure is not met, or that have none: part of a note that says so. The count is a ceiling.
UNVERIFIED = {
    "EleutherAI/pythia-160m",
    "black-forest-labs/FLUX.1-schnell",
    "facebook/opt-6.7b",
    "microsoft/Phi-3.5-MoE-instruct",
    "moonshotai/Kimi-K2-Instruct",
    "openai-community/gpt2-large",
    "openai-community/gpt2-xl",
    "stabilityai/stable-diffusion-3.5-large",
    "tiiuae/falcon-mamba-7b",
}
FAMILIES = ("Phi-3-mini", "Phi-3.5", "phi-4", "Llama-2", "Llama-3", "Llama-4", "Mistral-7B", "Mixtral", "Qwen2", "Qwen3", "Qwen3-30B", "gemma-2b", "gemma-2-", "gemma-3", "DeepSeek-V2", "DeepSeek-V3", "DeepSeek-R1", "gpt-oss", "GLM", "falcon", "bloom", "gpt2", "opt", "pythia", "OLMo", "mamba", "Jamba", "bert", "roberta", "t5", "whisper", "clip", "vit", "stable-diffusion", "FLUX")  # fmt: skip


def _facts(id: str) -> dict:  # type: ignore[type-arg]
    return json.loads(files("graphmem.catalog").joinpath("models", id.replace("/", "--") + ".json").read_text())


def test_it_is_large_and_broad() -> None:
    ids = catalog_ids()
    assert len(ids) >= 60
    assert [family for family in FAMILIES if not any(family in id for id in ids)] == []


@pytest.mark.parametrize("id", catalog_ids())
def test_totals_are_verified_or_admitted(id: str) -> None:
    checkpoint = read_catalog(id, "test")
    unverified = [note for note in checkpoint.notes if "not verified" in note]
    assert bool(unverified) == (id in UNVERIFIED)
    for part in (_facts(id).get("components") or {"": _facts(id)}).values():
        for fact in part["published"]:
            assert fact["of"]
            assert fact["source"]
            assert not fact["source"].startswith("/")


@pytest.mark.parametrize("id", ["microsoft/Phi-3-mini-128k-instruct", "openai-community/gpt2", "openai/gpt-oss-20b", "mistralai/Mixtral-8x7B-v0.1", "google/gemma-3-4b-it", "google-t5/t5-small"])  # fmt: skip
def test_the_table_is_what_the_generator_builds(id: str) -> None:
    facts = _facts(id)
    built = {(t.name, t.shape, t.dtype.name) for t in tensors_of(facts, build_model(facts["config"]))}
    assert built == {(t.name, t.shape, t.dtype.name) for t in expand(_facts(id)["tensors"])}


def test_names_in_any_case_and_former_names() -> None:
    assert find("gpt2") == "openai-community/gpt2"
    assert find("MICROSOFT/phi-3-mini-128k-instruct") == "microsoft/Phi-3-mini-128k-instruct"
    assert find("meta-llama/Meta-Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert find("nobody/nothing") is None


def test_a_pipeline_in_the_catalog() -> None:
    report = graphmem.inspect("stabilityai/stable-diffusion-xl-base-1.0", offline=True)
    assert {section.name for section in report.sections} >= {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert report.section("unet")["parameters"] == 2_567_463_684


def test_compress_undoes_expand() -> None:
    mixture = [tensor(f"model.layers.{n}.experts.{e}.w.weight", 4, 4) for n in range(3, 6) for e in range(4)]
    odd = [tensor("down.0.a.1.weight", 2), tensor("down.2.a.1.weight", 2), tensor("down.0.a.3.weight", 2)]
    for tensors in (llama_tensors(), mixture, odd):
        rows = compress(tensors)
        assert {(t.name, t.shape) for t in expand(rows)} == {(t.name, t.shape) for t in tensors}
    assert [row[0] for row in compress(mixture)] == ["model.layers.{3-5}.experts.{0-3}.w.weight"]


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_any_set_of_numbers_survives(numbers: set[tuple[int, int]]) -> None:
    tensors = [TensorSpec(f"a.{i}.b.{j}.c", (1,), SAFETENSORS["F32"]) for i, j in numbers]
    expanded = [t.name for t in expand(compress(tensors))]
    assert sorted(expanded) == sorted(t.name for t in tensors)


@pytest.mark.parametrize(
    ("id", "billions"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),  # Mistral's announcement
        ("deepseek-ai/DeepSeek-V3", 37.6),  # report: 37B, the prediction layer left out
        ("Qwen/Qwen3-30B-A3B", 3.3),  # model card
        ("moonshotai/Kimi-K2-Instruct", 32.9),  # model card: 32B
        ("ai21labs/Jamba-v0.1", 12.1),  # announcement: 12B
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 17.2),  # named for its 17B
    ],
)
def test_active_parameters_as_published(id: str, billions: float) -> None:
    assert int(graphmem.inspect(id, offline=True)["active_parameters"]) / 1e9 == pytest.approx(billions, abs=0.1)


def test_what_a_config_leaves_to_its_class_is_filled_in() -> None:
    """gemma-3-4b's config names no heads; Gemma3TextConfig's defaults are 8 heads, 4 for keys and values, of 256."""
    assert graphmem.inspect("google/gemma-3-4b-it", offline=True)["kv_cache_bytes_per_token"] == 34 * 2 * 4 * 256 * 2
