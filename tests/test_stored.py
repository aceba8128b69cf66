"""Logical parameters of packed checkpoints, against counts other projects assert on the live Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graphmem
from graphmem.checkpoint import ModelSpec, TensorSpec
from graphmem.parameters.schemes import awq, gptq, mlx
from graphmem.parameters.stored import stored_tensors
from tests.checkpoints import safetensors_file, write_all
from tests.conftest import SHARED
from tests.models import tensor

Q = 32  # rows of a test weight


def _inspect(tmp_path: Path, tensors: list[TensorSpec], config: dict[str, Any] | None = None) -> graphmem.Report:
    write_all(
        tmp_path, {"config.json": json.dumps(config or {}).encode(), "model.safetensors": safetensors_file(tensors)}
    )
    return graphmem.inspect(tmp_path)


def _parts(layout: Any, out: int, inp: int, at: str) -> list[TensorSpec]:
    return [TensorSpec(at + part.suffix, part.shape, part.dtype) for part in layout(out, inp)]


def test_gptq_and_awq_bits_are_read_from_shapes(tmp_path: Path) -> None:
    for number, (bits, layout) in enumerate([(4, gptq(4, 32)), (8, gptq(8, 32)), (3, gptq(3, 32)), (4, awq(4, 32))]):
        report = _inspect(tmp_path / str(number), _parts(layout, 64, 128, "l.0.q_proj"))
        assert report["parameters"] == 64 * 128, bits
        assert report["scale_bytes"] == sum(t.nbytes for t in _parts(layout, 64, 128, "x")[1:])


def test_compressed_tensors(tmp_path: Path) -> None:
    config = {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
        }
    }
    packed = [
        tensor("l.0.q_proj.weight_packed", 64, 128 * 4 // 32, dtype="I32"),
        tensor("l.0.q_proj.weight_scale", 64, 4),
        tensor("l.0.q_proj.weight_shape", 2, dtype="I64"),
        tensor("l.0.q_proj.weight_g_idx", 128, dtype="I32"),
    ]
    assert _inspect(tmp_path, packed, config)["parameters"] == 64 * 128


def test_compressed_tensors_without_bits_is_said_and_not_guessed(tmp_path: Path) -> None:
    report = _inspect(tmp_path, [tensor("l.0.q_proj.weight_packed", 64, 16, dtype="I32")])
    assert report["parameters"] == 64 * 16
    assert report.warnings == (
        "1 integer tensors are packed by an unknown method in a way graphmem does not know, first 'l.0.q_proj.weight_packed': "
        "their stored elements are counted as parameters",
    )


def test_nvfp4_mxfp4_fp8_and_int8(tmp_path: Path) -> None:
    report = _inspect(
        tmp_path,
        [
            tensor("a.0.up_proj.weight", 64, 64, dtype="U8"),  # NVFP4: two in a byte, blocks of 16, a second scale
            tensor("a.0.up_proj.weight_scale", 64, 8, dtype="F8_E4M3"),
            tensor("a.0.up_proj.weight_scale_2", dtype="F32"),
            tensor("a.0.up_proj.input_scale", dtype="F32"),
            tensor("b.0.experts_blocks", 2, 64, 4, 16, dtype="U8"),  # MXFP4 as gpt-oss stores it
            tensor("b.0.experts_scales", 2, 64, 4, dtype="U8"),
            tensor("c.0.q_proj.weight", 64, 64, dtype="F8_E4M3"),
            tensor("c.0.q_proj.weight_scale_inv", 1, 1, dtype="F32"),
            tensor("c.0.k_scale", dtype="F32"),
            tensor("d.0.q_proj.weight", 64, 64, dtype="I8"),
            tensor("d.0.q_proj.weight_scale", 64, 1),
            tensor("e.0.q_proj.weight", 64, 64, dtype="F8_E4M3"),  # no scale: plain fp8
        ],
    )
    assert report["parameters"] == 64 * 128 + 2 * 64 * 128 + 64 * 64 * 3
    assert report.warnings == ()
    kinds = {(row["dtype"], row["holds"]) for row in report["dtypes"]}
    assert ("U8", "packed parameters") in kinds
    assert ("F32", "scales") in kinds


def test_mlx_groups(tmp_path: Path) -> None:
    config = {"quantization": {"group_size": 64, "bits": 3}}
    assert _inspect(tmp_path, _parts(mlx(3, 64), 64, 128, "l.0.q_proj"), config)["parameters"] == 64 * 128


def test_bitsandbytes_by_siblings(tmp_path: Path) -> None:
    four = [
        tensor("l.0.q_proj.weight", 64 * 128 // 2, 1, dtype="U8"),
        tensor("l.0.q_proj.weight.absmax", 128, dtype="U8"),
        tensor("l.0.q_proj.weight.quant_map", 16, dtype="F32"),
        tensor("l.0.q_proj.weight.quant_state.bitsandbytes__nf4", 171, dtype="U8"),
    ]
    eight = [
        tensor("l.1.q_proj.weight", 64, 128, dtype="I8"),
        tensor("l.1.q_proj.SCB", 64, dtype="F32"),
        tensor("l.1.q_proj.weight_format", dtype="U8"),
    ]
    assert _inspect(tmp_path, [*four, *eight])["parameters"] == 2 * 64 * 128


def test_buffers_are_apart(tmp_path: Path) -> None:
    report = _inspect(
        tmp_path,
        [
            tensor("conv.weight", 8, 3, 3, 3, dtype="F32"),
            tensor("bn.running_mean", 8, dtype="F32"),
            tensor("bn.num_batches_tracked", dtype="I64"),
            tensor("h.0.attn.bias", 1, 1, 16, 16, dtype="F32"),
            tensor("h.0.attn.rotary_emb.inv_freq", 4, dtype="F32"),
        ],
    )
    assert report["parameters"] == 8 * 27
    assert report["buffer_bytes"] == 32 + 8 + 1024 + 16


def test_gpt_oss_counts_of_another_projects_live_tests() -> None:
    counts = json.loads((SHARED / "models" / "per_dtype_counts.json").read_text()) if SHARED.is_dir() else {}
    published = counts.get("param_counts_hfjs_spec", {})
    for name in ("openai/gpt-oss-20b", "openai/gpt-oss-120b"):
        report = graphmem.inspect(name, offline=True)
        expected = published.get(
            name, {"total": {"openai/gpt-oss-20b": 20_914_757_184, "openai/gpt-oss-120b": 116_829_156_672}[name]}
        )
        assert report["parameters"] == expected["total"]


def test_unpacking_is_exact_for_every_tensor_kind() -> None:
    """The kinds partition the tensors: bytes by kind add up to the bytes stored."""
    spec = ModelSpec(
        (tensor("a.0.q_proj.weight", Q, Q, dtype="I8"), tensor("a.0.q_proj.SCB", Q, dtype="F32"), tensor("n.weight", Q))
    )
    stored, _ = stored_tensors(spec)
    assert sum(t.spec.nbytes for t in stored) == spec.nbytes
    assert {t.kind for t in stored} == {"parameter", "scale"}


def _one(tmp_path: Path, tensors: list[TensorSpec], method: str = "") -> tuple[Any, tuple[str, ...]]:
    report = _inspect(tmp_path, tensors, {"quantization_config": {"quant_method": method, "bits": 4}} if method else {})
    return report["parameters"], report.warnings


def test_layouts_that_differ_from_their_cousins(tmp_path: Path) -> None:
    """One 64 × 128 weight in the layouts of AWQ's gemv kernels, BitNet, ModelOpt's W4A16 and int8 with groups of 16."""
    at = "l.0.q_proj."
    true = 64 * 128
    gemv = [
        tensor(at + "qweight", 64, 16, dtype="I32"),
        tensor(at + "qzeros", 64, 1, dtype="I32"),
        tensor(at + "scales", 64, 1, dtype="F16"),
    ]
    fast = [tensor(at + "qweight", 16, 128, dtype="I16"), tensor(at + "scales", 1, 64, dtype="F16")]
    bitnet = [tensor(at + "weight", 16, 128, dtype="U8"), tensor(at + "weight_scale", 1)]
    w4a16 = [
        tensor(at + "weight", 32, 128, dtype="U8"),
        tensor(at + "weight_scale", 64, 1, dtype="F32"),
        tensor(at + "pre_quant_scale", 128),
    ]
    int8 = [tensor(at + "weight", 64, 128, dtype="I8"), tensor(at + "weight_scale", 64, 8)]
    assert _one(tmp_path / "a", gemv, "awq") == (true, ())
    assert _one(tmp_path / "b", fast, "awq") == (true, ())
    assert _one(tmp_path / "c", bitnet, "bitnet") == (true, ())
    assert _one(tmp_path / "d", w4a16, "modelopt") == (true, ())
    assert _one(tmp_path / "e", int8, "compressed-tensors") == (true, ())


def test_unknown_packing_is_said_and_gets_no_loader_table(tmp_path: Path) -> None:
    report = _inspect(
        tmp_path, [tensor("l.0.q_proj.codes", 64, 16, 2, dtype="I16"), tensor("l.0.k_proj.weight", 64, 64)]
    )
    assert "in a way graphmem does not know, first 'l.0.q_proj.codes'" in report.warnings[0]
    assert "loaders" not in [table.key for table in report.sections[0].tables]


def test_fp8_experts_stacked_in_one_parameter(tmp_path: Path) -> None:
    stacked = [
        tensor("l.0.mlp.experts.gate_up_proj", 4, 64, 64, dtype="F8_E4M3"),
        tensor("l.0.mlp.experts.gate_up_proj_scale_inv", 4, 1, 1, dtype="F32"),
    ]
    report = _inspect(tmp_path, stacked)
    assert (report["parameters"], report["scale_bytes"]) == (4 * 64 * 64, 16)


def test_a_bias_of_four_dimensions_is_no_mask(tmp_path: Path) -> None:
    assert _inspect(tmp_path, [tensor("grn.bias", 1, 1, 1, 96, dtype="F32")])["parameters"] == 96
