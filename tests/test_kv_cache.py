"""Cache layouts from configs against the caches that transformers' own models really fill, and against vLLM's view of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmem.checkpoint import Checkpoint, ModelSpec
from graphmem.inference.kv_cache import CacheLayout, NoCache, cache_layout
from graphmem.inference.kv_dtypes import kv_dtype_named
from graphmem.inference.layouts import CompressedAttention, CrossAttention, LayerCache, SlidingAttention
from graphmem.inspection.assemble import inspection
from graphmem.views import json as json_view
from tests.conftest import SHARED
from tests.models import tensor

TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

#: Configs of many kinds, small enough to run. What a real run caches is the expected value. Not here: Falcon's new decoder, whose
#: transformers code caches keys broadcast to all heads (vLLM keeps the KV heads, and so do we).
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama GQA": ("LlamaForCausalLM", TINY),
    "head_dim not hidden/heads": ("Qwen3ForCausalLM", {**TINY, "head_dim": 24}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 128, "n_positions": 256}),
    "bloom": ("BloomForCausalLM", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}),
    "falcon MQA": ("FalconForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128, "multi_query": True, "new_decoder_architecture": False}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 256, "multi_query": True}),
    "mistral window": ("MistralForCausalLM", {**TINY, "sliding_window": 16}),
    "gemma2 alternates": ("Gemma2ForCausalLM", {**TINY, "head_dim": 16, "sliding_window": 16}),
    "gemma3 five to one": ("Gemma3ForCausalLM", {**TINY, "num_hidden_layers": 7, "head_dim": 16, "sliding_window": 16}),
    "olmo3 three to one": ("Olmo3ForCausalLM", {**TINY, "sliding_window": 16}),
    "qwen2 window off": ("Qwen2ForCausalLM", {**TINY, "sliding_window": 16, "use_sliding_window": False}),
    "gpt-oss": ("GptOssForCausalLM", {**TINY, "head_dim": 16, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-next hybrid": ("Qwen3NextForCausalLM", {**TINY, **MOE, "head_dim": 16, "shared_expert_intermediate_size": 32, "full_attention_interval": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4}),
    "lfm2 convolutions": ("Lfm2ForCausalLM", {**TINY, "full_attn_idxs": [1, 3], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}),
    "jamba": ("JambaForCausalLM", {**TINY, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}),
    "phi3": ("Phi3ForCausalLM", {**TINY, "pad_token_id": 0, "sliding_window": 15}),
    "gpt-neox": ("GPTNeoXForCausalLM", {k: v for k, v in TINY.items() if k != "num_key_value_heads"}),
    "mamba": ("MambaForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8, "conv_kernel": 4, "expand": 2}),
    "falcon-mamba": ("FalconMambaForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8, "conv_kernel": 4, "expand": 2}),
    "mamba2": ("Mamba2ForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128, "state_size": 8, "conv_kernel": 4, "expand": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2}),
    "nemotron-h": ("NemotronHForCausalLM", {**TINY, "hybrid_override_pattern": "M*M-", "layers_block_type": ["mamba", "attention", "mamba", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8, "conv_kernel": 4, "head_dim": 16}),
    "zamba2": ("Zamba2ForCausalLM", {**TINY, "num_key_value_heads": 4, "mamba_d_state": 8, "mamba_ngroups": 2, "mamba_headdim": 16, "n_mamba_heads": 8, "mamba_expand": 2, "mamba_d_conv": 4, "num_mem_blocks": 1, "hybrid_layer_ids": [1, 3], "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "use_mamba_kernels": False, "adapter_rank": 4}),
    "falcon-h1": ("FalconH1ForCausalLM", {**TINY, "mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_d_conv": 4}),
    "bamba": ("BambaForCausalLM", {**TINY, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}),
    "granite-4 hybrid": ("GraniteMoeHybridForCausalLM", {**TINY, "layer_types": ["mamba", "mamba", "attention", "mamba"], "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}),
    "minimax lightning": ("MiniMaxForCausalLM", {**TINY, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["linear_attention", "full_attention"] * 2, "linear_attn_alpha_factor": 1}),
    "deepseek-v3 as transformers caches it": ("DeepseekV3ForCausalLM", {**TINY, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "kv_lora_rank": 24, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1}),
    "gemma3n shares": ("Gemma3nForCausalLM", {**TINY, "num_hidden_layers": 6, "head_dim": 16, "sliding_window": 16, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 3, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8, "intermediate_size": [96] * 6, "activation_sparsity_pattern": [0.0] * 6}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 128, "decoder_start_token_id": 0}),
    "bart": ("BartForConditionalGeneration", {"d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": 128, "max_position_embeddings": 256}),
    "llama4 chunks": ("Llama4ForCausalLM", {**TINY, "head_dim": 16, "attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 96}),
    "kimi linear": ("KimiLinearForCausalLM", {**TINY, "num_key_value_heads": 4, "linear_attn_config": {"kda_layers": [1, 2, 3], "full_attn_layers": [4], "num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4}, "kv_lora_rank": 24, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "pad_token_id": 0}),
    "deepseek-v4": ("DeepseekV4ForCausalLM", {**TINY, "num_key_value_heads": 1, "head_dim": 32, "qk_rope_head_dim": 8, "sliding_window": 16, "compress_ratios": [0, 4, 128, 4], "index_head_dim": 16, "index_n_heads": 2, "index_topk": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "q_lora_rank": 16, "o_lora_rank": 16, "o_groups": 2}),
    "opt": ("OPTForCausalLM", {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 256, "word_embed_proj_dim": 64}),
}  # fmt: skip

TOKENS = 40


def _cached_bytes(cache: Any) -> int:
    """Bytes of everything a transformers cache keeps: keys, values, indexers' keys, convolution inputs and recurrent states."""
    found: dict[int, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            found[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                count(inner)

    for part in (getattr(cache, "self_attention_cache", cache), getattr(cache, "cross_attention_cache", None)):
        for layer in part.layers if part is not None else ():
            for value in vars(layer).values():
                count(value)
    count(getattr(cache, "linear_cache", []))  # MiniMax keeps its matrices beside the layers
    return sum(found.values())


def _predicted(layer: LayerCache) -> int:
    """Bytes in fp32 after `TOKENS` tokens; sliding layers of transformers keep window − 1 of them between steps."""
    kv = kv_dtype_named("float32")
    if not hasattr(layer, "bytes_at"):
        return layer.nbytes(4) if hasattr(layer, "nbytes") else 0
    drops = isinstance(layer, SlidingAttention | CompressedAttention) and layer.size <= TOKENS
    one = (
        layer.kv_heads * (kv.row(layer.key_size) + kv.row(layer.value_size))
        if isinstance(layer, SlidingAttention)
        else 0
    )
    if isinstance(layer, CompressedAttention):
        one = kv.row(layer.width)
    return layer.bytes_at(TOKENS, kv) - (one if drops else 0)


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.filterwarnings("ignore")
def test_a_real_run_caches_what_the_config_says(case: str) -> None:
    architecture, settings = RUNS[case]
    cls = getattr(transformers, architecture)
    config = cls.config_class(**settings)
    torch.manual_seed(0)
    model = cls(config).eval()
    extra = {"decoder_input_ids": torch.randint(1, 100, (1, TOKENS))} if config.is_encoder_decoder else {}
    with torch.no_grad():
        output = model(torch.randint(1, 100, (1, TOKENS)), use_cache=True, **extra)
        cache_bytes = _cached_bytes(output.cache_params if "cache_params" in output else output.past_key_values)
    known = {**settings, "model_type": config.model_type, "architectures": [architecture]}
    if config.is_encoder_decoder:
        known["is_encoder_decoder"] = True
    layout = cache_layout(known)
    assert isinstance(layout, CacheLayout), layout
    layers = [replace(layer, tokens=TOKENS) if isinstance(layer, CrossAttention) else layer for layer in layout]
    assert sum(_predicted(layer) for layer in layers) == cache_bytes


@pytest.mark.parametrize(
    "case", ["qwen3-next hybrid", "jamba", "mamba", "mamba2", "falcon-h1", "minimax lightning", "lfm2 convolutions"]
)
@pytest.mark.filterwarnings("ignore")
def test_states_of_a_16_bit_model(case: str) -> None:
    """Convolution inputs are in the model's dtype; recurrent states are fp32 but for lightning attention."""
    architecture, settings = RUNS[case]
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**settings)).to(torch.bfloat16).eval()
    with torch.no_grad():
        output = model(torch.randint(1, 100, (1, TOKENS)), use_cache=True)
    cache = output.cache_params if "cache_params" in output else output.past_key_values
    layout = cache_layout({**settings, "model_type": model.config.model_type, "architectures": [architecture]})
    assert isinstance(layout, CacheLayout)
    assert layout.bytes_at(TOKENS) == _cached_bytes(cache)


def test_mla_caches_the_latent_whatever_the_heads_say() -> None:
    layout = cache_layout({"architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 61, "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 128, "hidden_size": 7168})  # fmt: skip
    assert isinstance(layout, CacheLayout)
    assert layout.bytes_per_token() == 61 * (512 + 64) * 2


def test_explain_is_the_arithmetic() -> None:
    layout = cache_layout({**TINY, "architectures": ["LlamaForCausalLM"]})
    assert isinstance(layout, CacheLayout)
    assert layout.explain() == "4 full layers × 2 (K and V) × 2 KV heads × 16 × 2 B"
    assert layout.bytes_per_token() == 4 * 2 * 2 * 16 * 2


#: Bytes by published code, written out by hand: (config, tokens, bytes).
OTHER_KEYS: dict[str, tuple[dict[str, Any], int, int]] = {
    # transformers' falcon_mamba and mamba take the channels from intermediate_size, whatever expand says; the recurrent state is fp32.
    "Falcon-Mamba": ({"architectures": ["FalconMambaForCausalLM"], "model_type": "falcon_mamba", "hidden_size": 4096, "num_hidden_layers": 64, "intermediate_size": 8192, "expand": 16, "state_size": 16, "conv_kernel": 4}, 8192, 64 * 8192 * (4 * 2 + 16 * 4)),
    # Two attentions in each of the 28 layers that the config counts.
    "LongCat-Flash": ({"architectures": ["LongcatFlashForCausalLM"], "num_layers": 28, "zero_expert_num": 256, "hidden_size": 6144, "num_attention_heads": 64, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 100, 56 * 576 * 2 * 100),
    "Step 3.5": ({"architectures": ["Step3p5ForCausalLM"], "num_hidden_layers": 4, "hidden_size": 4096, "num_attention_heads": 64, "num_attention_groups": 8, "head_dim": 128}, 10, 4 * 2 * 8 * 128 * 2 * 10),
    "num_query_groups": ({"architectures": ["XForCausalLM"], "num_hidden_layers": 4, "hidden_size": 4096, "num_attention_heads": 64, "group_query_attention": True, "num_query_groups": 2}, 10, 4 * 2 * 2 * 64 * 2 * 10),
    "MPT multiquery": ({"architectures": ["MPTForCausalLM"], "n_layers": 2, "d_model": 64, "n_heads": 4, "attn_config": {"attn_type": "multiquery_attention"}}, 10, 2 * 2 * 16 * 2 * 10),
    # A letter a layer: the fourth of every four keeps all 100 tokens, the others the window's 8.
    "Exaone 4": ({"architectures": ["Exaone4ForCausalLM"], **TINY, "sliding_window": 8, "sliding_window_pattern": "LLLG"}, 100, (3 * 8 + 100) * 2 * 2 * 16 * 2),
    "DeciLM": ({"architectures": ["DeciLMForCausalLM"], **TINY, "num_hidden_layers": 2, "block_configs": [{"attention": {"replace_with_linear": True}}, {"attention": {"n_heads_in_group": 2}}]}, 10, 2 * 2 * 16 * 2 * 10),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_KEYS)
def test_keys_that_few_configs_have(name: str) -> None:
    config, tokens, expected = OTHER_KEYS[name]
    layout = cache_layout(config)
    assert isinstance(layout, CacheLayout)
    assert layout.bytes_at(tokens) == expected


def test_local_attention_of_recurrent_gemma_is_a_window() -> None:
    layout = cache_layout({"architectures": ["RecurrentGemmaForCausalLM"], "num_hidden_layers": 3, "hidden_size": 64, "lru_width": 64, "num_attention_heads": 4, "num_key_value_heads": 1, "attention_window_size": 32, "conv1d_width": 4, "block_types": ["recurrent", "recurrent", "attention"]})  # fmt: skip
    assert isinstance(layout, CacheLayout)
    assert [cache.window for cache in layout.attention] == [32]


def test_a_key_that_changes_the_cache_in_an_unknown_way_gets_no_number() -> None:
    found = cache_layout({**TINY, "architectures": ["HunYuanForCausalLM"], "use_cla": True})
    assert isinstance(found, NoCache)
    assert found.missing
    assert "use_cla" in found.reason


@pytest.mark.parametrize(
    ("config", "reason", "missing"),
    [
        (
            {"architectures": ["BertModel"], "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768},
            "BertModel generates no tokens",
            False,
        ),
        ({"architectures": ["LlamaForCausalLM"], "hidden_size": 8}, "the config names no layer count", True),
        (
            {"architectures": ["XForCausalLM"], "num_hidden_layers": 2},
            "the config names no attention heads or head size",
            True,
        ),
        (
            {**TINY, "architectures": ["XForCausalLM"], "layer_types": ["full_attention", "telepathy"] * 2},
            "layers of type 'telepathy'",
            True,
        ),
        (
            {**TINY, "architectures": ["XForCausalLM"], "layer_types": ["full_attention"]},
            "the config lists 1 layer types for 4 layers",
            True,
        ),
        (
            {**TINY, "architectures": ["XForCausalLM"], "compress_ratios": [0, 4, 7, 0]},
            "layers of type 'compressed by 7'",
            True,
        ),
        ({}, "no config beside the weights", True),
    ],
)
def test_what_cannot_be_told_is_not_guessed(config: dict[str, Any], reason: str, missing: bool) -> None:
    found = cache_layout(config)
    assert isinstance(found, NoCache)
    assert reason in found.reason
    assert found.missing is missing


#: vLLM's own test data: (hidden, layers, heads, head_size, vocab, kv_heads, experts) of models whose config lies in ../shared.
VLLM = {
    "tiiuae/falcon-40b": "catalog",
    "tiiuae/falcon-7b": "catalog",
    "Qwen/Qwen3-Next-80B-A3B-Instruct": "catalog",
    "zai-org/GLM-4.5": "catalog",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "catalog",
    "Zyphra/Zamba2-7B-instruct": "Zyphra__Zamba2-7B",
    "deepseek-ai/DeepSeek-V3.2-Exp": "deepseek-ai__DeepSeek-V3.2",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
}


@pytest.mark.parametrize("name", VLLM)
def test_heads_as_vllm_sees_them(name: str) -> None:
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the checkout")
    truth = json.loads((SHARED / "models" / "per_dtype_counts.json").read_text())["vllm_arch_groundtruth"][name]
    _, layers, _, head_size, _, kv_heads, _ = truth
    if VLLM[name] == "catalog":
        from importlib.resources import files

        config = json.loads(
            files("graphmem.catalog").joinpath("models", name.replace("/", "--") + ".json").read_text()
        )["config"]
    else:
        config = json.loads((SHARED / "models" / VLLM[name] / "config.json").read_text())
    layout = cache_layout(config)
    assert isinstance(layout, CacheLayout)
    assert len(layout.layers) == layers
    attention = {layer.per_token(kv_dtype_named("fp8")) - getattr(layer, "indexer", 0) for layer in layout.attention}
    per_layer = head_size if "DeepSeek" in name else 2 * kv_heads * head_size  # MLA: vLLM's head size is the latent's
    assert attention == {per_layer}


KEYS = ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "hidden_size", "sliding_window", "use_sliding_window", "sliding_window_pattern", "max_window_layers", "layer_types", "layers_block_type", "hybrid_override_pattern", "attn_type_list", "hybrid_layer_pattern", "block_configs", "full_attn_idxs", "linear_attn_config", "cross_attention_layers", "full_attention_interval", "attn_layer_period", "attn_layer_offset", "attention_chunk_size", "no_rope_layers", "kv_lora_rank", "qk_rope_head_dim", "swa_head_dim", "swa_num_key_value_heads", "global_head_dim", "num_kv_shared_layers", "max_position_embeddings", "max_source_positions", "is_encoder_decoder", "text_config", "architectures", "model_type", "index_head_dim", "multi_query", "attn_config", "state_size", "unplaced_sliding_window", "num_mem_blocks"]  # fmt: skip
_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 10**31), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(broken=st.dictionaries(st.sampled_from(KEYS), _json, max_size=3), gguf=st.booleans())
def test_no_config_breaks_the_report(broken: dict[str, Any], gguf: bool) -> None:
    """Whatever a key holds: a layout of whole numbers, or a reason; and tables and JSON can be made of it."""
    base = {"architectures": ["LlamaForCausalLM"], **TINY, **({"gguf": True} if gguf else {})}
    spec = ModelSpec((tensor("model.embed_tokens.weight", 8, 4),), {**base, **broken})
    report = inspection(Checkpoint("t", "o", (spec,)))
    json_view.render(report)
    str(report)


def test_a_pattern_of_layers_builds_as_many() -> None:
    """Nemotron-H's config gives a letter a layer in a key that its class also works out itself."""
    from graphmem.sources.build import build_model

    config = {"architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", **TINY, "num_hidden_layers": 6, "hybrid_override_pattern": "M-M*-M", "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8, "conv_kernel": 4, "head_dim": 16}  # fmt: skip
    model: Any = build_model(config)
    assert len(model.config.layers_block_type) == 6
    layout = cache_layout(config)
    assert isinstance(layout, CacheLayout)
    assert [cache.kind for cache in layout] == ["state", "no-cache", "state", "full", "no-cache", "state"]
