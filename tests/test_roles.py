"""Components by role: hand-labelled tensors of many families, none decided by a substring."""

from __future__ import annotations

import pytest

from graphmem.parameters.roles import components
from tests.models import tensor

#: name, shape, what a person who knows the model calls it. Each block is one model, since roles depend on siblings.
LABELLED: dict[str, list[tuple[str, tuple[int, ...], str]]] = {
    "phi3": [
        ("model.layers.0.post_attention_layernorm.weight", (64,), "norm"),
        ("model.layers.0.self_attn.qkv_proj.weight", (192, 64), "attention"),
        ("model.layers.0.mlp.gate_up_proj.weight", (256, 64), "mlp"),
        ("model.embed_tokens.weight", (99, 64), "embedding"),
        ("model.norm.weight", (64,), "norm"),
        ("lm_head.weight", (99, 64), "head"),
    ],
    "bloom": [
        ("word_embeddings.weight", (99, 64), "embedding"),
        ("word_embeddings_layernorm.weight", (64,), "norm"),
        ("h.0.self_attention.query_key_value.weight", (192, 64), "attention"),
        ("h.0.self_attention.dense.weight", (64, 64), "attention"),
        ("h.0.mlp.dense_h_to_4h.weight", (256, 64), "mlp"),
        ("h.0.post_attention_layernorm.bias", (64,), "norm"),
    ],
    "bert": [
        ("bert.embeddings.word_embeddings.weight", (99, 64), "embedding"),
        ("bert.embeddings.LayerNorm.gamma", (64,), "norm"),
        ("bert.encoder.layer.0.attention.self.query.weight", (64, 64), "attention"),
        ("bert.encoder.layer.0.attention.output.dense.weight", (64, 64), "attention"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.weight", (64,), "norm"),
        ("bert.encoder.layer.0.intermediate.dense.weight", (256, 64), "mlp"),
        ("bert.encoder.layer.0.output.dense.weight", (64, 256), "mlp"),
        ("bert.pooler.dense.weight", (64, 64), "head"),
        ("cls.predictions.transform.dense.weight", (64, 64), "head"),
    ],
    "opt": [
        ("model.decoder.layers.0.fc1.weight", (256, 64), "mlp"),
        ("model.decoder.layers.0.self_attn.out_proj.weight", (64, 64), "attention"),
        ("model.decoder.layers.0.self_attn_layer_norm.weight", (64,), "norm"),
        ("model.decoder.embed_positions.weight", (66, 64), "embedding"),
    ],
    "t5": [
        ("shared.weight", (99, 64), "embedding"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 8), "attention"),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", (64, 64), "attention"),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", (64, 64), "attention"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", (256, 64), "mlp"),
    ],
    "mixtral": [
        ("model.layers.0.block_sparse_moe.gate.weight", (8, 64), "router"),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", (128, 64), "experts"),
    ],
    "deepseek": [
        ("model.layers.1.mlp.gate.weight", (8, 64), "router"),
        ("model.layers.1.mlp.gate.e_score_correction_bias", (8,), "router"),
        ("model.layers.1.mlp.experts.7.down_proj.weight", (64, 128), "experts"),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", (128, 64), "shared experts"),
        ("model.layers.0.mlp.gate_proj.weight", (128, 64), "mlp"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (64, 64), "attention"),
        ("model.layers.0.self_attn.kv_a_layernorm.weight", (64,), "norm"),
    ],
    "gpt-oss": [
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", (4, 64, 2, 16), "experts"),
        ("model.layers.0.mlp.router.weight", (4, 64), "router"),
        ("model.layers.0.self_attn.sinks", (8,), "attention"),
    ],
    "mamba": [
        ("backbone.layers.0.mixer.A_log", (64, 16), "ssm"),
        ("backbone.layers.0.mixer.in_proj.weight", (256, 64), "ssm"),
        ("backbone.layers.0.mixer.conv1d.weight", (128, 1, 4), "ssm"),
        ("backbone.layers.0.norm.weight", (64,), "norm"),
        ("backbone.norm_f.weight", (64,), "norm"),
    ],
    "nemotron-h, whose mixers are all sorts": [
        ("backbone.layers.0.mixer.A_log", (64,), "ssm"),
        ("backbone.layers.0.mixer.out_proj.weight", (64, 64), "ssm"),
        ("backbone.layers.1.mixer.q_proj.weight", (64, 64), "attention"),
        ("backbone.layers.1.mixer.o_proj.weight", (64, 64), "attention"),
        ("backbone.layers.2.mixer.up_proj.weight", (128, 64), "mlp"),
    ],
    "qwen3-next": [
        ("model.layers.0.linear_attn.in_proj_qkvz.weight", (256, 64), "ssm"),
        ("model.layers.0.linear_attn.out_proj.weight", (64, 64), "ssm"),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 64), "router"),
        ("model.layers.3.self_attn.q_norm.weight", (16,), "norm"),
    ],
    "llava": [
        ("language_model.model.layers.0.self_attn.q_proj.weight", (64, 64), "attention"),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", (64, 64), "vision tower"),
        ("vision_tower.vision_model.embeddings.patch_embedding.weight", (64, 3, 14, 14), "vision tower"),
        ("multi_modal_projector.linear_1.weight", (64, 64), "projector"),
    ],
    "qwen2-vl": [
        ("visual.blocks.0.attn.qkv.weight", (192, 64), "vision tower"),
        ("visual.merger.mlp.0.weight", (64, 64), "projector"),
        ("model.layers.0.mlp.up_proj.weight", (64, 64), "mlp"),
    ],
    "a vision model alone has no tower": [
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", (64, 64), "attention"),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", (64, 64), "mlp"),
        ("vision_model.embeddings.class_embedding", (64,), "embedding"),
    ],
    "gguf": [
        ("token_embd.weight", (99, 64), "embedding"),
        ("blk.0.attn_q.weight", (64, 64), "attention"),
        ("blk.0.attn_norm.weight", (64,), "norm"),
        ("blk.0.ffn_gate_inp.weight", (8, 64), "router"),
        ("blk.0.ffn_down_exps.weight", (8, 64, 64), "experts"),
        ("blk.0.ffn_up_shexp.weight", (64, 64), "shared experts"),
        ("blk.1.ssm_in.weight", (64, 64), "ssm"),
        ("output_norm.weight", (64,), "norm"),
        ("output.weight", (99, 64), "head"),
    ],
    "flux": [
        ("transformer_blocks.0.attn.to_q.weight", (64, 64), "attention"),
        ("transformer_blocks.0.attn.norm_q.weight", (16,), "norm"),
        ("transformer_blocks.0.ff.net.0.proj.weight", (256, 64), "mlp"),
        ("transformer_blocks.0.norm1.linear.weight", (384, 64), "other"),
        ("time_text_embed.timestep_embedder.linear_1.weight", (64, 32), "embedding"),
    ],
    "resnet": [
        ("resnet.encoder.stages.0.layers.0.layer.0.convolution.weight", (64, 64, 3, 3), "convolution"),
        ("resnet.encoder.stages.0.layers.0.layer.0.normalization.weight", (64,), "norm"),
        ("resnet.encoder.stages.0.layers.0.shortcut.convolution.weight", (64, 64, 1, 1), "convolution"),
        ("classifier.1.weight", (10, 64), "head"),
    ],
    "conformer": [
        ("encoder.layers.0.conv_module.pointwise_conv1.weight", (128, 64, 1), "convolution"),
        ("encoder.layers.0.feed_forward_macaron.conv1.weight", (128, 64, 1), "mlp"),
        ("encoder.layers.0.self_attn.linear_q.weight", (64, 64), "attention"),
    ],
    "xlm": [
        ("transformer.attentions.0.q_lin.weight", (64, 64), "attention"),
        ("transformer.attentions.0.out_lin.weight", (64, 64), "attention"),
        ("transformer.ffns.0.lin1.weight", (256, 64), "mlp"),
    ],
    "recurrent-gemma": [
        ("model.layers.0.temporal_block.linear_y.weight", (64, 64), "ssm"),
        ("model.layers.0.temporal_block.rg_lru.input_gate_weight", (4, 16, 16), "ssm"),
        ("model.layers.2.temporal_block.q_proj.weight", (64, 64), "attention"),
    ],
    "granite-moe": [
        ("model.layers.0.block_sparse_moe.input_linear.weight", (8, 128, 64), "experts"),
        ("model.layers.0.block_sparse_moe.router.layer.weight", (8, 64), "router"),
    ],
    "stacked experts without a module of that name": [
        ("layers.3.moe.up_proj.weight", (16, 128, 64), "experts"),
        ("layers.3.moe.gate.weight", (16, 64), "router"),
        ("layers.3.share_expert.up_proj.weight", (128, 64), "shared experts"),
    ],
}


@pytest.mark.parametrize("model", LABELLED)
def test_labels(model: str) -> None:
    labelled = LABELLED[model]
    found = components([tensor(name, *shape) for name, shape, _ in labelled])
    assert found == {name: label for name, _, label in labelled}


def test_a_matrix_is_no_norm_whatever_its_module_is_called() -> None:
    assert components([tensor("layers.0.norm.weight", 64, 64)])["layers.0.norm.weight"] == "other"
