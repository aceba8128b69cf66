"""Local folders and files: indexes that lie, duplicates counted once, configs without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import graphmem
from graphmem.errors import CheckpointError, MissingExtraError, TargetError, UnsupportedError
from graphmem.sources.build import build_model
from graphmem.sources.load import load
from tests.checkpoints import SparseFile, safetensors_file, sharded, write_all
from tests.models import LLAMA_CONFIG, LLAMA_PARAMETERS, config_bytes, llama_tensors, tensor

INDEX = "model.safetensors.index.json"


def _index(files: dict[str, Any], **changes: Any) -> dict[str, Any]:
    content = json.loads(files[INDEX])
    content.update(changes)
    return {**files, INDEX: json.dumps(content).encode()}


def test_a_folder_a_file_and_a_hub_cache_entry(tmp_path: Path) -> None:
    file = safetensors_file(llama_tensors())
    folder = write_all(tmp_path / "m", {"config.json": config_bytes(), "model.safetensors": file})
    entry = tmp_path / "models--o--m"
    write_all(entry / "snapshots" / "abc", {"config.json": config_bytes(), "model.safetensors": file})
    write_all(entry, {"refs/main": b"abc"})
    for target in (folder, folder / "model.safetensors", entry, str(folder)):
        assert graphmem.inspect(target)["parameters"] == LLAMA_PARAMETERS


@pytest.mark.parametrize(
    ("total", "warning"),
    [
        (435_327, "metadata.total_size says 435,327 bytes, the headers 435,328 (+1); the headers are what is counted"),
        (0, "metadata.total_size is unusable (0); the headers say 435,328 bytes and are what is counted"),
        ("12", "metadata.total_size is unusable ('12'); the headers say 435,328 bytes"),
        (1.5, "metadata.total_size is unusable (1.5); the headers say 435,328 bytes"),
    ],
)
def test_a_wrong_total_warns(tmp_path: Path, total: Any, warning: str) -> None:
    write_all(tmp_path, sharded(llama_tensors(), 2, total))
    report = graphmem.inspect(tmp_path)
    assert report["bytes"] == 2 * LLAMA_PARAMETERS
    assert [w for w in report.warnings if warning in w], report.warnings


def test_an_absent_total_warns_and_so_does_a_float(tmp_path: Path) -> None:
    write_all(tmp_path / "a", _index(sharded(llama_tensors(), 2), metadata={}))
    assert "metadata.total_size is absent" in graphmem.inspect(tmp_path / "a").warnings[0]
    write_all(tmp_path / "b", sharded(llama_tensors(), 2, 435_328.0))
    assert graphmem.inspect(tmp_path / "b").warnings == (
        f"{INDEX}: metadata.total_size is a float (435328.0), though its value is right",
    )


def test_a_missing_shard(tmp_path: Path) -> None:
    files = sharded(llama_tensors(), 3)
    del files["model-00002-of-00003.safetensors"]
    with pytest.raises(CheckpointError) as error:
        graphmem.inspect(write_all(tmp_path, files))
    assert str(error.value) == (
        f"{INDEX}: shard 'model-00002-of-00003.safetensors' is missing; download it, or the whole checkpoint, again"
    )


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "..\\x", "a/../../b", "C:x", ""])
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    files = sharded(llama_tensors(), 2)
    weight_map = {**json.loads(files[INDEX])["weight_map"], "lm_head.weight": shard}
    write_all(tmp_path, _index(files, weight_map=weight_map))
    with pytest.raises(
        CheckpointError,
        match=r"tensor 'lm_head.weight': (shard .* lies outside the checkpoint's folder: refused|the shard must be a file name)",
    ):
        graphmem.inspect(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    files = sharded(llama_tensors(), 2)
    files["model-00002-of-00002.safetensors"] = safetensors_file(llama_tensors()[:1])
    with pytest.raises(
        CheckpointError,
        match=r"^tensor 'model.embed_tokens.weight' is in two shards, model-00001-of-00002.safetensors and model-00002-of-00002",
    ):
        graphmem.inspect(write_all(tmp_path, files))


def test_shards_and_index_that_disagree_on_names(tmp_path: Path) -> None:
    files = sharded(llama_tensors(), 2)
    weight_map = json.loads(files[INDEX])["weight_map"]
    weight_map["ghost"] = weight_map.pop("lm_head.weight")
    report = graphmem.inspect(write_all(tmp_path, _index(files, weight_map=weight_map)))
    assert f"{INDEX}: lists 1 tensors no shard holds, first 'ghost'" in report.warnings
    assert f"{INDEX}: does not list 1 tensors the shards hold, first 'lm_head.weight'" in report.warnings
    assert report["parameters"] == LLAMA_PARAMETERS


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": []}', b'{"weight_map": {}}'])
def test_an_index_without_a_map(tmp_path: Path, content: bytes) -> None:
    write_all(tmp_path, {INDEX: content})
    with pytest.raises(CheckpointError, match="'weight_map' .* is missing or empty; download the file again"):
        graphmem.inspect(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "config.json: not valid JSON (line 1: Expecting property name"),
        (b"\xff\xfe", "config.json: not UTF-8 text at byte 0; download the file again"),
        (b"[]", "config.json: expected a JSON object, found list; check the file"),
    ],
)
def test_a_broken_config(tmp_path: Path, content: bytes, message: str) -> None:
    write_all(tmp_path, {"config.json": content, "model.safetensors": safetensors_file(llama_tensors())})
    with pytest.raises(CheckpointError) as error:
        graphmem.inspect(tmp_path)
    assert str(error.value).startswith(message)


def test_infinity_in_a_config_is_read_and_never_written(tmp_path: Path) -> None:
    config = config_bytes({**LLAMA_CONFIG, "time_step_limit": [0.0, float("inf")], "rope_theta": float("inf")})
    assert b"Infinity" in config
    report = graphmem.inspect(
        write_all(tmp_path, {"config.json": config, "model.safetensors": safetensors_file(llama_tensors())})
    )
    from graphmem.views.json import render

    assert "Infinity" not in render(report)
    assert report["kv_cache_bytes_per_token"] == 4 * 2 * 2 * 16 * 2


def test_infinity_where_a_size_is_needed_is_named(tmp_path: Path) -> None:
    config = config_bytes({**LLAMA_CONFIG, "num_hidden_layers": float("inf")})
    report = graphmem.inspect(
        write_all(tmp_path, {"config.json": config, "model.safetensors": safetensors_file(llama_tensors())})
    )
    assert report["kv_cache"].notes == (
        "cannot be told: the config's num_hidden_layers is inf, not a whole number above zero",
    )


def test_duplicates_are_counted_once_and_named(tmp_path: Path) -> None:
    files: dict[str, bytes | SparseFile] = {
        "config.json": config_bytes(),
        "model.safetensors": safetensors_file(llama_tensors()),
        "model.fp32.safetensors": safetensors_file(llama_tensors(dtype="F32")),
        "consolidated.safetensors": safetensors_file(llama_tensors()),
        "pytorch_model.bin": b"pickle",
        "original/consolidated.00.pth": b"pickle",
        "onnx/model.onnx": b"onnx",
        "training_args.bin": b"args",
    }
    report = graphmem.inspect(write_all(tmp_path, files))
    assert report["bytes"] == 2 * LLAMA_PARAMETERS
    assert report.notes == (
        "counted model.safetensors; not counted: consolidated.safetensors, model.fp32.safetensors, "
        "pytorch_model.bin, onnx/ (1 file), original/ (1 file)",
    )


def test_shards_without_an_index(tmp_path: Path) -> None:
    files = sharded(llama_tensors(), 3)
    del files[INDEX]
    assert graphmem.inspect(write_all(tmp_path, files))["parameters"] == LLAMA_PARAMETERS


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    evil = b"cos\nsystem\n(S'touch /tmp/graphmem-was-here'\ntR."
    report = graphmem.inspect(write_all(tmp_path, {"config.json": config_bytes(), "pytorch_model.bin": evil}))
    assert report["parameters"] == LLAMA_PARAMETERS
    assert report.notes[0].startswith("pytorch_model.bin: a pickle, never opened")
    assert not Path("/tmp/graphmem-was-here").exists()
    with pytest.raises(
        TargetError, match=r"^pytorch_model.bin: a pickle, which graphmem never opens; point at its folder"
    ):
        graphmem.inspect(tmp_path / "pytorch_model.bin")


def test_a_lone_config_and_a_lone_index(tmp_path: Path) -> None:
    index = sharded(llama_tensors(), 2)[INDEX]
    write_all(tmp_path, {"config.json": config_bytes(), INDEX: index})
    assert graphmem.inspect(tmp_path)["bytes"] == 2 * LLAMA_PARAMETERS
    report = graphmem.inspect(tmp_path / "config.json")
    assert report["parameters"] == LLAMA_PARAMETERS
    assert {figure.basis for figure in report.sections[0].figures} == {"built", "formula"}


def test_an_index_whose_total_is_of_another_dtype(tmp_path: Path) -> None:
    index = sharded(llama_tensors(dtype="F32"), 2)[INDEX]
    report = graphmem.inspect(write_all(tmp_path, {"config.json": config_bytes(), INDEX: index}))
    assert report["bytes"] == 4 * LLAMA_PARAMETERS
    assert f"{INDEX}: the config says BF16, and the total is that of F32: counted so" in report.notes
    assert report.warnings == ()


def test_building_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError) as error:
        graphmem.inspect(write_all(tmp_path, {"config.json": config_bytes()}))
    assert str(error.value) == (
        "config.json: shapes must come from building the model, which needs torch and transformers; run: pip install 'graphmem[torch]'"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "secret", "auto_map": {"AutoConfig": "c.C"}},
            "config.json: model type 'secret' is defined by Python code in its own repository",
        ),
        ({"model_type": "secret"}, "config.json: the installed transformers knows no model type 'secret'; upgrade it"),
        ({"hidden_size": 4}, "config.json: has no 'model_type', so no class can be built from it"),
        ({**LLAMA_CONFIG, "torch_dtype": "bf15"}, "config.json: dtype 'bf15' is not a dtype weights are stored in"),
        ({**LLAMA_CONFIG, "hidden_size": "many"}, "config.json: transformers 5"),
    ],
)
def test_configs_that_cannot_be_built(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        graphmem.inspect(write_all(tmp_path, {"config.json": config_bytes(config)}))
    assert str(error.value).startswith(message)


def test_empty_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="the folder is empty"):
        graphmem.inspect(tmp_path)
    (tmp_path / "notes.txt").write_text("hi")
    with pytest.raises(TargetError, match=r"no model here: .*it holds notes.txt"):
        graphmem.inspect(tmp_path)
    with pytest.raises(TargetError, match=r"notes.txt: graphmem reads .safetensors"):
        graphmem.inspect(tmp_path / "notes.txt")


def test_sub_byte_dtypes_are_sized_by_bits(tmp_path: Path) -> None:
    tensors = [
        tensor("a.weight", 8, 6, dtype="F4"),
        tensor("b.weight", 8, 6, dtype="F6_E3M2"),
        tensor("c.weight", 8, 6, dtype="F8_E8M0"),
    ]
    report = graphmem.inspect(write_all(tmp_path, {"model.safetensors": safetensors_file(tensors)}))
    assert report["bytes"] == 24 + 36 + 48
    assert report["parameters"] == 3 * 48


def test_a_shard_that_is_missing_without_an_index(tmp_path: Path) -> None:
    files = sharded(llama_tensors(), 3)
    del files[INDEX], files["model-00002-of-00003.safetensors"]
    with pytest.raises(
        CheckpointError,
        match=r"^model-00001-of-00003.safetensors: shard 'model-00002-of-00003.safetensors' is missing; download",
    ):
        graphmem.inspect(write_all(tmp_path, files))


def test_an_index_may_spell_a_path_in_another_way(tmp_path: Path) -> None:
    files = sharded(llama_tensors(), 2)
    weight_map = {name: f"./{shard}" for name, shard in json.loads(files[INDEX])["weight_map"].items()}
    assert graphmem.inspect(write_all(tmp_path, _index(files, weight_map=weight_map)))["parameters"] == LLAMA_PARAMETERS


def test_shards_in_a_folder_of_their_own_are_counted_and_not_called_left(tmp_path: Path) -> None:
    files = sharded(llama_tensors(), 2)
    weight_map = {name: f"part/{shard}" for name, shard in json.loads(files[INDEX])["weight_map"].items()}
    moved = {f"part/{name}": content for name, content in files.items() if name != INDEX}
    report = graphmem.inspect(write_all(tmp_path, {INDEX: _index(files, weight_map=weight_map)[INDEX], **moved}))
    assert (report["parameters"], report.notes) == (LLAMA_PARAMETERS, ())


def test_a_broken_config_is_blamed_only_where_it_is_needed(tmp_path: Path) -> None:
    write_all(tmp_path, {"config.json": b"{", "m.py": b"", "pytorch_model.bin": b"", "other.json": config_bytes()})
    with pytest.raises(TargetError, match=r"^m.py: graphmem reads"):
        graphmem.inspect(tmp_path / "m.py")
    with pytest.raises(TargetError, match=r"^pytorch_model.bin: a pickle"):
        graphmem.inspect(tmp_path / "pytorch_model.bin")
    assert graphmem.inspect(tmp_path / "other.json")["parameters"] == LLAMA_PARAMETERS


@pytest.mark.parametrize("text", [None, 5, True, [], "x"])
def test_a_text_config_that_is_none(tmp_path: Path, text: Any) -> None:
    files = {
        "config.json": config_bytes({**LLAMA_CONFIG, "text_config": text}),
        "model.safetensors": safetensors_file(llama_tensors()),
    }
    assert graphmem.inspect(write_all(tmp_path, files))["parameters"] == LLAMA_PARAMETERS


def test_transformers_spelling_of_infinity(tmp_path: Path) -> None:
    config = {"architectures": ["BambaForCausalLM"], "model_type": "bamba", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_expand": 2, "torch_dtype": "bfloat16", "time_step_limit": [0.0, {"__float__": "Infinity"}]}  # fmt: skip
    assert graphmem.inspect(write_all(tmp_path, {"config.json": config_bytes(config)}))["parameters"]


def test_a_class_that_transformers_lacks_is_named(tmp_path: Path) -> None:
    report = graphmem.inspect(
        write_all(tmp_path, {"config.json": config_bytes({**LLAMA_CONFIG, "architectures": ["LlamaForReward"]})})
    )
    assert report.warnings == (
        "config.json: names LlamaForReward, which transformers lacks; built LlamaForCausalLM instead, which may differ",
    )


@pytest.mark.parametrize("target", ["x" * 5000, "/dev/zero"])
def test_paths_that_are_no_checkpoints(target: str) -> None:
    with pytest.raises(TargetError):
        graphmem.inspect(target)


def test_ties_are_not_made_of_equal_shapes(tmp_path: Path) -> None:
    """A position table as large as the token table is no twin of it; a config that says untied is believed."""
    gpt2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "tie_word_embeddings": True}
    files = {
        "config.json": config_bytes(gpt2),
        "model.safetensors": safetensors_file([tensor("wte.weight", 256, 64), tensor("wpe.weight", 256, 64)]),
    }
    assert graphmem.inspect(write_all(tmp_path / "a", files))["parameters"] == 2 * 256 * 64
    untied = {"architectures": ["XForConditionalGeneration"], "tie_word_embeddings": False}
    files = {
        "config.json": config_bytes(untied),
        "model.safetensors": safetensors_file([tensor("model.embed_tokens.weight", 256, 64)]),
    }
    assert "ties" not in [table.key for table in graphmem.inspect(write_all(tmp_path / "b", files)).sections[0].tables]


def test_a_quantized_config_alone_says_what_is_counted(tmp_path: Path) -> None:
    config = {**LLAMA_CONFIG, "quantization_config": {"quant_method": "aqlm"}}
    report = graphmem.inspect(write_all(tmp_path / "a", {"config.json": config_bytes(config)}))
    assert report.warnings == (
        "config.json: the weights are stored quantized (aqlm); without their headers they are counted in bfloat16",
    )
    config = {**LLAMA_CONFIG, "quantization_config": {"quant_method": "fp8"}}
    report = graphmem.inspect(write_all(tmp_path / "b", {"config.json": config_bytes(config)}))
    assert report.warnings == ()
    assert (
        "config.json: packed and kept modules as its quantization (fp8) names them; no headers were read"
        in report.notes
    )
    assert report["parameters"] == LLAMA_PARAMETERS


def test_a_null_of_the_config_is_not_filled_in_by_the_class(tmp_path: Path) -> None:
    """DeepSeek-V2-Lite's q_lora_rank is null; its class would take 1536, and the model would have other queries."""
    config = {"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "vocab_size": 128, "dtype": "bfloat16"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = load(tmp_path).sections[0]
    assert spec.config["q_lora_rank"] is None
    assert sum(p.numel() for p in build_model(spec.config).parameters()) == sum(t.elements for t in spec.tensors)
    assert any(t.name.endswith("self_attn.q_proj.weight") and t.shape == (4 * 16, 64) for t in spec.tensors)
