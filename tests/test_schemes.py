"""What loaders store, against checkpoints that real loaders stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphmem.checkpoint import ModelSpec
from graphmem.parameters.loading import Linears, Loaded, linears_of, load_with
from graphmem.parameters.roles import components
from graphmem.parameters.schemes import SCHEMES, Scheme, awq, gptq
from graphmem.parameters.stored import stored_tensors
from graphmem.sources.build import build_model
from graphmem.sources.built_spec import checkpoint_tensors

BY_KEY = {scheme.key: scheme for scheme in SCHEMES}


def _load(config: dict, scheme: Scheme) -> tuple[Loaded, Linears]:  # type: ignore[type-arg]
    spec = ModelSpec(checkpoint_tensors(build_model(config)), config)
    tensors, _ = stored_tensors(spec)
    roles = components(spec.tensors)
    linears = linears_of(tensors, roles)
    return load_with(scheme, linears), linears


#: Figures of checkpoints that quantizing tools wrote; see fixtures/README.md.
WRITTEN = json.loads((Path(__file__).resolve().parents[1] / "fixtures" / "quantized_checkpoints.json").read_text())[
    "checkpoints"
]


def test_llm_int8() -> None:
    name = "Llama-3.1-8B-bnb-int8"
    loaded, linears = _load(WRITTEN[name]["config"], BY_KEY["llm-int8"])
    assert sum(linears.shapes.values()) == 224
    assert (
        loaded.total + sum(linears.shapes.values()) == WRITTEN[name]["total_size"]
    )  # saved with one byte each for the weight format


def test_nf4_with_double_quantization() -> None:
    name = "Llama-2-13B-bnb-nf4"
    loaded, linears = _load(WRITTEN[name]["config"], BY_KEY["nf4-double"])
    assert sum(linears.shapes.values()) == 280
    # On disk the nested offset is a number in a JSON text of some 170 bytes; in memory it is a float.
    texts = WRITTEN[name]["total_size"] - (loaded.total - 4 * sum(linears.shapes.values()))
    assert 165 * sum(linears.shapes.values()) < texts < 180 * sum(linears.shapes.values())


def test_gptq_4_bit_groups_of_128() -> None:
    name = "WizardCoder-15B-1.0-GPTQ"
    config = WRITTEN[name]["config"]
    loaded, linears = _load(config, BY_KEY["gptq-4"])
    assert sum(linears.shapes.values()) == 160
    head_saved_though_tied = config["vocab_size"] * config["n_embd"] * 2
    header = WRITTEN[name]["file_size"] - loaded.total - head_saved_though_tied
    assert 0 < header < 200 * 1100


def test_gptq_3_bit_one_group() -> None:
    name = "Genz-70b-GPTQ"
    loaded, linears = _load(WRITTEN[name]["config"], Scheme("", "", gptq(3, -1), ""))
    assert sum(linears.shapes.values()) == 560
    zero_biases = 2 * sum(
        count * out for (out, _), count in linears.shapes.items()
    )  # AutoGPTQ saves a bias even where the model has none
    header = WRITTEN[name]["file_size"] - loaded.total - zero_biases
    assert 0 < header < 150 * 3100


def test_mxfp4_experts() -> None:
    name = "gpt-oss-20b"
    config = {**WRITTEN[name]["config"], "torch_dtype": "bfloat16"}
    experts = 24 * 32 * (2 * 2880 * 2880 + 2880 * 2880)
    parts = BY_KEY["mxfp4"].layout(2880, 2880)
    per_weight = sum(part.nbytes for part in parts) / (2880 * 2880)
    others = sum(
        t.nbytes
        for t in checkpoint_tensors(build_model(config))
        if not t.name.endswith(("experts.gate_up_proj", "experts.down_proj"))
    )
    assert others + experts * per_weight == WRITTEN[name]["total_size"]


@pytest.mark.parametrize("key", [scheme.key for scheme in SCHEMES])
def test_parts_hold_the_weight_once(key: str) -> None:
    """The packed part has at least the bits the name promises, and the rest is small."""
    parts = BY_KEY[key].layout(4096, 11008)
    bits = 8 if key.startswith(("fp8", "llm")) else 4
    packed = sum(part.nbytes for part in parts if part.holds_weight)
    assert packed == 4096 * 11008 * bits // 8
    assert 0 < sum(part.nbytes for part in parts if not part.holds_weight) < packed / 7


def test_awq_by_hand() -> None:
    """AutoAWQ's WQLinear_GEMM: qweight [in, out·4/32], qzeros [in/128, out·4/32] int32, scales [in/128, out] fp16."""
    sizes = {part.suffix: part.nbytes for part in awq(4, 128)(4096, 1024)}
    assert sizes == {".qweight": 1024 * 512 * 4, ".qzeros": 8 * 512 * 4, ".scales": 8 * 4096 * 2}
