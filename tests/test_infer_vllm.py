"""vLLM's arithmetic against vLLM's own functions and published logs, and the questions asked the other way round."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphmem
from graphmem.checkpoint import ModelSpec
from graphmem.engines.shape import Shape
from graphmem.engines.vllm.budget import Budget, budget
from graphmem.engines.vllm.groups import pool
from graphmem.engines.vllm.profile import profile
from graphmem.engines.vllm.questions import least_utilization, longest_model_len, most_requests
from graphmem.engines.vllm.serving import Serving
from graphmem.engines.vllm.specs import Spec, specs_of
from graphmem.engines.vllm.versions import Scheduling, release, scheduling
from graphmem.errors import GraphmemError
from graphmem.inference.kv_dtypes import kv_dtype_named
from graphmem.inference.layouts import Attention, ChunkedAttention, LatentAttention, SlidingAttention, State
from graphmem.inspection.model import understand
from graphmem.sources.load import Access, load
from graphmem.tracing.device import Device, traced_for
from graphmem.units import GIB

ROWS = json.loads((Path(__file__).parents[1] / "fixtures" / "vllm_kv_cache.json").read_text())["rows"]
BF16 = kv_dtype_named("bfloat16")


def _spec(layer: dict[str, Any], row: dict[str, Any]) -> Spec:
    kind = "state" if layer["kind"] == "mamba" else layer["kind"]
    padded = layer.get("page_size_padded")
    if kind == "state":
        sizes = zip(layer["shapes"], layer["dtype_bytes"], strict=True)
        return Spec("state", layer["block"], sum(math.prod(shape) * size for shape, size in sizes), padded=padded)
    if layer.get("cache_dtype_str") == "fp8_ds_mla":
        per_token = 656
    elif kind == "mla":
        per_token = layer["kv_heads"] * layer["head_size"] * layer["dtype_bytes"]
    else:
        values = layer.get("head_size_v", layer["head_size"])
        per_token = layer["kv_heads"] * (layer["head_size"] + values) * layer["dtype_bytes"]
    size = layer.get("window") or layer.get("chunk") or (row.get("encoder_tokens", 0) if kind == "cross" else 0)
    return Spec(kind, layer["block"], per_token, size, padded)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['version']} {row['name']}")
def test_blocks_tokens_and_concurrency_are_vllms_own(row: dict[str, Any]) -> None:
    specs = {layer["id"]: _spec(layer, row) for layer in row["layers"]}
    found, version = (
        pool([specs[key] for key, count in row["order"] for _ in range(count)], release(row["version"])),
        release(row["version"]),
    )
    blocks = found.num_blocks(row["available"])
    assert blocks == row["num_blocks"]
    if row["tokens"] is not None:
        asked = (row["max_model_len"], row["tokens_in_flight"])
        assert found.concurrency(blocks, *asked) == pytest.approx(row["max_concurrency"], rel=1e-12)
        assert found.tokens(version, blocks, *asked) == row["tokens"]


def test_pages_of_layers() -> None:
    """vllm/v1/kv_cache_interface.py by hand: 2 · block · heads · size · bytes; a window − 1 + batch, and one block more; a state once."""
    v = release("0.11.0")
    full, sliding, latent, state = specs_of(
        [Attention(8, 128, 128), SlidingAttention(8, 128, 128, 1024)], v, BF16, 16, 32768
    ) + specs_of([LatentAttention(512, 64)], v, BF16, 64, 32768) + specs_of([State("s", (8192, 4), (32, 128, 128), "float32")], v, BF16, 16, 32768)  # fmt: skip
    assert full.page == 2 * 16 * 8 * 128 * 2
    assert full.bytes_of_request(32768, 8192) == 32768 * 2 * 8 * 128 * 2
    assert sliding.blocks(32768, 8192) == math.ceil((1023 + 8192) / 16) + 1
    assert latent.page == 64 * 576 * 2
    assert state.page == 8192 * 3 * 2 + 32 * 128 * 128 * 2
    assert state.blocks(10**6, 8192) == 1
    assert [s.page for s in specs_of([LatentAttention(512, 64)], v, BF16, 64, 32768, deepseek_fp8=True)] == [64 * 656]
    indexed = specs_of([LatentAttention(512, 64, 128)], v, kv_dtype_named("fp8"), 64, 32768)
    assert [s.per_token for s in indexed] == [576, 132]


def test_hybrids_raise_the_block_until_it_holds_a_state() -> None:
    """Qwen3-Next, as vLLM 0.11 says at its start: attention block size 544."""
    caches = [State("s", (8192, 4), (32, 128, 128), "float32")] * 3 + [Attention(2, 256, 256)]
    specs = specs_of(caches, release("0.11.0"), BF16, 16, 262144)
    assert specs[-1].block == 544
    assert len({spec.page for spec in specs}) == 1


def test_heads_are_replicated_and_llama_4_chunks_are_whole() -> None:
    v = release("0.11.0")
    assert specs_of([Attention(4, 128, 128)], v, BF16, 16, 4096, tp=8)[0].per_token == 2 * 128 * 2
    assert [s.kind for s in specs_of([ChunkedAttention(8, 128, 128, 8192)], v, BF16, 16, 4096)] == ["full"]
    assert [s.kind for s in specs_of([ChunkedAttention(8, 128, 128, 8192)], release("0.10.2"), BF16, 16, 4096)] == [
        "chunked"
    ]
    with pytest.raises(GraphmemError, match="tp 3: does not divide the 8 KV heads, nor they it; use a divisor of 8"):
        specs_of([Attention(8, 128, 128)], v, BF16, 16, 4096, tp=3)
    # V0 pages every layer alike; values were padded to keys until 0.18.
    assert specs_of([SlidingAttention(8, 128, 128, 1024)], release("0.7.3"), BF16, 16, 4096)[0].kind == "full"
    assert specs_of([Attention(4, 192, 128)], v, BF16, 16, 4096)[0].per_token == 4 * 2 * 192 * 2
    assert specs_of([Attention(4, 192, 128)], release("0.18.1"), BF16, 16, 4096)[0].per_token == 4 * (192 + 128) * 2


@pytest.mark.parametrize(
    ("version", "usage", "total", "gpu", "seqs", "tokens"),
    [
        ("0.8.0", "llm", 80, "NVIDIA H100 80GB HBM3", 1024, 16384), ("0.8.0", "server", 24, "L4", 1024, 2048),
        ("0.8.5", "server", 80, "A100-80GB", 1024, 8192), ("0.9.2", "server", 80, "A100-80GB", 256, 2048),
        ("0.11.0", "server", 80, "H100-80GB", 1024, 8192), ("0.11.0", "llm", 24, "RTX 4090", 256, 8192),
        ("0.28.0", "server", 180, "B200", 1024, 16384), ("0.27.1", "server", 180, "B200", 1024, 8192),
    ],
)  # fmt: skip
def test_defaults_by_version_and_gpu(version: str, usage: Any, total: int, gpu: str, seqs: int, tokens: int) -> None:
    assert scheduling(release(version), usage, total * GIB, gpu, 40960) == Scheduling(seqs, tokens)


def test_defaults_of_v0() -> None:
    old = release("0.6.6")
    assert not old.v1
    assert scheduling(old, "server", 80 * GIB, "H100", 8192) == Scheduling(256, 8192)
    assert scheduling(old, "server", 80 * GIB, "H100", 131072) == Scheduling(256, 2048)  # chunked by itself above 32K
    assert scheduling(release("0.6.0"), "server", 80 * GIB, "H100", 131072) == Scheduling(256, 512)
    # Before 0.5.5 nothing is chunked unasked (vllm/config.py of 0.4.3).
    assert scheduling(release("0.4.3"), "server", 80 * GIB, "H100", 131072) == Scheduling(256, 131072)
    assert scheduling(old, "server", 80 * GIB, "H100", 131072, chunked=False) == Scheduling(256, 131072)
    assert not release("0.8.5", (7, 5)).v1, "a T4 falls back to V0"
    assert release("0.20").utilization == 0.92
    assert release("0.19.1").utilization == 0.9


def _budget(target: str, gpu: str, total: float | None = None, **settings: Any) -> Budget:
    model, _ = understand(load(target, Access(offline=True)).sections[0])
    device = traced_for(None, gpu, None)
    if total is not None:
        device = replace(device, memory=round(total * GIB))
    return budget(model, device, Serving(**settings))


def test_sampling_sorts_38_bytes_a_logit() -> None:
    """The buffers of torch.sort by hand: logits 2, fp32 copy 4, values 4, indices 8, reverse indices 8, cub's keys 4 and values 8."""
    shape = Shape(1024, 151936, 28, 2048, 1024, 3072, 2, 0, 1, 3072, 40960, 128, False, False)
    found = profile(shape, Scheduling(1024, 8192), release("0.11.0"), capability=(9, 0))
    assert found.sampling == 1024 * 151936 * 38 + (8192 + 1024) * 1024 * 2
    few = profile(shape, Scheduling(64, 8192), release("0.11.0"), capability=(9, 0))
    assert few.sampling == 64 * 151936 * 50 + (8192 + 64) * 1024 * 2
    triton = profile(shape, Scheduling(1024, 8192), release("0.18.1"), capability=(9, 0), sms=132)
    assert triton.sampling == 1024 * 151936 * 14 + 132 * 151936 * 4 + (8192 + 1024) * 1024 * 2


def test_an_mlp_holds_its_input_where_the_code_keeps_the_name() -> None:
    shape = Shape(4096, 128256, 32, 4096, 1024, 14336, 2, 0, 1, 14336, 131072, 128, False, False)
    schedule = Scheduling(256, 20000)
    assert (
        profile(shape, schedule, release("0.6.6"), classes=("LlamaForCausalLM",)).forward
        == 20000 * (3 * 4096 + 3 * 14336) * 2
    )
    assert (
        profile(shape, schedule, release("0.6.6"), classes=("Qwen2ForCausalLM",)).forward
        == 20000 * (4 * 4096 + 3 * 14336) * 2
    )


def test_weights_are_allocated_as_vllm_fuses_them() -> None:
    """Qwen2.5-7B: 7,615,616,512 × 2 B and a rotary table; 14.2717 GiB in the log, for blocks that the allocator does not split."""
    found = _budget("Qwen/Qwen2.5-7B", "A100-80GB", version="0.7.2", max_model_len=4096).weights
    assert found.total - found.rounding == 7_615_616_512 * 2 + 131072 * 128 * 2
    assert found.total / GIB == pytest.approx(14.2717, abs=0.001)
    halved = _budget(
        "Qwen/Qwen3-32B", "H100-80GB", version="0.11.0", max_model_len=4096, tensor_parallel_size=2
    ).weights
    assert halved.total / GIB == pytest.approx(30.59, abs=0.006)


def test_a_budget_reproduces_a_start_up_log_to_the_block() -> None:
    """unsloth/Llama-3.2-3B-Instruct with LoRA slots on an A100 40GB: 13,724 blocks, 219,584 tokens."""
    found = _budget(
        "meta-llama/Llama-3.2-3B-Instruct", "A100-40GB", 39.56, version="0.8.1", v1=False, gpu_memory_utilization=0.79, max_model_len=2048,
        max_num_seqs=320, max_num_batched_tokens=2048, max_loras=1, max_lora_rank=64,
    )  # fmt: skip
    assert found.available / GIB == pytest.approx(23.46, abs=0.01)
    assert (found.blocks, found.tokens) == (13724, 219584)


def test_items_close_the_budget() -> None:
    found = graphmem.infer("Qwen/Qwen3-14B", engine="vllm", gpu="L40S", offline=True, max_model_len=40960)
    settled = _budget("Qwen/Qwen3-14B", "L40S", max_model_len=40960)
    assert found.total == settled.requested
    assert sum(item.nbytes for item in found.items if item.key != "cache") == settled.beside_cache


@settings(deadline=None)
@given(
    share=st.floats(0.3, 1.0), length=st.sampled_from([1024, 4096, 16384, 40960]), seqs=st.sampled_from([8, 256, 1024]),
    version=st.sampled_from(["0.7.3", "0.8.5", "0.11.0", "0.20.2", "0.28.0"]),
)  # fmt: skip
def test_questions_the_other_way_round(share: float, length: int, seqs: int, version: str) -> None:
    found = _QWEN.again(
        gpu_memory_utilization=round(share, 2), max_model_len=length, max_num_seqs=seqs, version=version
    )
    least = least_utilization(found)
    if least is not None:
        assert found.again(gpu_memory_utilization=least).starts
        assert least == 0.01 or not found.again(gpu_memory_utilization=round(least - 0.01, 2)).starts
    longest = longest_model_len(found)
    if longest is not None:
        assert found.again(max_model_len=longest).starts
        assert longest == found.layout.context or not found.again(max_model_len=longest + 1).starts
    assert found.starts == (found.available > 0 and found.left(length, 1) >= 0)
    most = most_requests(found, length)
    if found.starts and most < found.schedule.max_num_seqs:
        assert found.left(length, most) >= 0 > found.left(length, most + 1)


_QWEN = _budget("Qwen/Qwen3-8B", "RTX 4090")


def test_what_each_step_of_the_share_adds() -> None:
    low, high = (_QWEN.again(gpu_memory_utilization=share, max_model_len=4096) for share in (0.92, 0.95))
    assert high.available - low.available == high.requested - low.requested
    assert high.tokens > low.tokens


def test_draft_layers_and_quantized_caches() -> None:
    plain = _QWEN.again(max_model_len=4096)
    drafted = plain.again(draft_layers=1)
    assert drafted.request_bytes(4096) == plain.request_bytes(4096) // 36 * 37
    assert plain.again(kv_cache_dtype="fp8").request_bytes(4096) * 2 == plain.request_bytes(4096)
    quarter = plain.again(kv_cache_dtype="nvfp4").request_bytes(4096)
    assert quarter == plain.request_bytes(4096) * (128 // 2 + 128 // 16) // 256


@pytest.mark.parametrize(
    ("config", "name", "kept"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, "a.qzeros", 0.0),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False}, "a.qzeros", 1.0),
        ({"quant_method": "gptq", "bits": 4, "desc_act": False}, "a.g_idx", 0.0),
        ({"quant_method": "awq", "bits": 4}, "a.qzeros", 1.0),
    ],
)
def test_what_marlin_drops(config: dict[str, Any], name: str, kept: float) -> None:
    from graphmem.checkpoint import TensorSpec
    from graphmem.dtypes import SAFETENSORS
    from graphmem.engines.vllm.weights import loaded

    base = {"num_hidden_layers": 1, "hidden_size": 256, "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "architectures": ["LlamaForCausalLM"]}  # fmt: skip
    module = "model.layers.0.mlp.down_proj"
    tensors = [
        TensorSpec("model.embed_tokens.weight", (64, 256), SAFETENSORS["F16"]), TensorSpec(f"{module}.qweight", (32, 256), SAFETENSORS["I32"]),
        TensorSpec(f"{module}.scales", (2, 256), SAFETENSORS["F16"]), TensorSpec(name.replace("a", module, 1), (256,), SAFETENSORS["I32"]),
    ]  # fmt: skip
    spec = ModelSpec(tuple(tensors), {**base, "quantization_config": config})
    without = ModelSpec(tuple(tensors[:-1]), {**base, "quantization_config": config})
    shape = Shape(256, 64, 1, 256, 256, 512, 2, 0, 1, 512, 64, 0, False, False)
    totals = [sum(loaded(understand(one)[0], shape, release("0.11.0")).components.values()) for one in (spec, without)]
    assert totals[0] - totals[1] == kept * 1024


def test_vllm_needs_a_gpu_and_one_that_holds_a_request() -> None:
    with pytest.raises(
        GraphmemError, match="vLLM makes its pool as large as the GPU allows; add --gpu NAME or --memory SIZE"
    ):
        graphmem.infer("Qwen/Qwen3-8B", engine="vllm", offline=True)
    found = graphmem.infer("Qwen/Qwen3-8B", engine="vllm", gpu="T4", offline=True)
    assert found.fits is False
    assert found.margin is not None
    assert found.margin < 0
    assert "nothing is left for the cache" in found.warnings[0]
    assert isinstance(traced_for(None, "T4", None), Device)


def test_a_checkpoint_known_by_its_total_alone(tmp_path: Path) -> None:
    """The class is unknown, the index lists names without shapes: the total it declares is what loads, never nothing."""
    config = {"model_type": "nobody_knows", "architectures": ["NobodyForCausalLM"], "num_hidden_layers": 2, "hidden_size": 512, "num_attention_heads": 8, "vocab_size": 1000, "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = {"metadata": {"total_size": 10**9}, "weight_map": {"model.embed.weight": "a.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = graphmem.infer(str(tmp_path), engine="vllm", gpu="L4")
    assert found.item("weights").nbytes >= 10**9
    assert "only the total that" in str(found)


def test_explained_states_are_what_is_counted() -> None:
    """Nemotron-H: 54 states of 20,480 channels that keep three inputs, and 256 × 64 × 256 in 16 bit, each in a page as large as attention's."""
    state = State("Mamba-2", (20480, 4), (256, 64, 256))
    (spec, _) = specs_of([state, Attention(8, 128, 128)], release("0.28.0"), BF16, 16, 8192)
    assert spec.per_token == (20480 * 3 + 256 * 64 * 256) * 2
    assert spec.arithmetic == "20480 channels × 3 convolution inputs × 2 B + 256 × 64 × 256 × 2 B"
    assert state.explained(4, 4, columns_less=1) == "20480 channels × 3 convolution inputs × 4 B + 256 × 64 × 256 × 4 B"


def test_what_would_make_it_start() -> None:
    """A 32 B model in 16 bit on 80 GB: 61 GiB of weights leave room on one GPU only for less, and on two for all."""
    found = graphmem.infer("Qwen/Qwen3-32B", engine="vllm", gpu="L40S", offline=True)
    assert found.fits is False
    changes = {row[0]: row for row in found["starts_with"].rows}
    assert "--tensor-parallel-size 2" in changes
    assert "--tensor-parallel-size 4" not in changes, "the smallest that starts"
    with_two = graphmem.infer("Qwen/Qwen3-32B", engine="vllm", gpu="L40S", offline=True, tensor_parallel_size=2)
    assert with_two.fits is True
    assert changes["--tensor-parallel-size 2"][2] == with_two.item("weights").nbytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 7}, "block-size 7: vLLM's attention kernels take multiples of 16"),
        ({"kv_cache_dtype": "fp8_ds_mla"}, "DeepSeek's own layout of latents, which this model has not; use fp8"),
        ({"max_model_len": "8k"}, "max-model-len '8k': is a whole number: 8192"),
    ],
)
def test_settings_that_vllm_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphmemError, match=re.escape(message)):
        graphmem.infer("Qwen/Qwen3-8B", engine="vllm", gpu="L40S", offline=True, **options)


def test_gpus_and_releases_that_vllm_would_complain_of() -> None:
    asked = graphmem.infer(
        "Qwen/Qwen3-0.6B", engine="vllm", gpu="T4", offline=True, dtype="bfloat16", max_model_len=4096
    )
    assert any("refuses bfloat16" in text for text in asked.warnings)
    itself = graphmem.infer("Qwen/Qwen3-0.6B", engine="vllm", gpu="T4", offline=True, max_model_len=4096)
    assert not itself.warnings
    assert any("float16" in text for text in itself.notes)
    newer = graphmem.infer("Qwen/Qwen3-8B", engine="vllm", gpu="L40S", offline=True, version="9.9")
    assert any("newer than" in text for text in newer.warnings)


def test_rules_of_thumb_take_the_bits_people_mean() -> None:
    def said(target: str, **options: Any) -> str:
        return str(graphmem.infer(target, engine="vllm", gpu="H100", offline=True, **options)["rules"].notes)

    assert "Q = 16 " in said("Qwen/Qwen3-8B")
    assert "Q = 4 " in said("Qwen/Qwen3-8B", quantization="awq-4")
    assert "P = 4,095,367,680" in said("Qwen/Qwen3-8B", tensor_parallel_size=2)
