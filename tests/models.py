"""Small models, described as tensors, that tests store, serve and measure."""

from __future__ import annotations

import json
from typing import Any

from graphmem.checkpoint import TensorSpec
from graphmem.dtypes import SAFETENSORS

LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def config_bytes(config: dict[str, Any] = LLAMA_CONFIG) -> bytes:
    return json.dumps(config).encode()


def tensor(name: str, *shape: int, dtype: str = "BF16") -> TensorSpec:
    return TensorSpec(name, shape, SAFETENSORS[dtype])


def llama_tensors(
    layers: int = 4, hidden: int = 64, ffn: int = 176, vocab: int = 256, kv: int = 32, dtype: str = "BF16"
) -> list[TensorSpec]:
    """What a Llama of these sizes stores, in the order of its modules."""

    def layer(n: int) -> list[TensorSpec]:
        at = f"model.layers.{n}."
        return [
            tensor(at + "self_attn.q_proj.weight", hidden, hidden, dtype=dtype),
            tensor(at + "self_attn.k_proj.weight", kv, hidden, dtype=dtype),
            tensor(at + "self_attn.v_proj.weight", kv, hidden, dtype=dtype),
            tensor(at + "self_attn.o_proj.weight", hidden, hidden, dtype=dtype),
            tensor(at + "mlp.gate_proj.weight", ffn, hidden, dtype=dtype),
            tensor(at + "mlp.up_proj.weight", ffn, hidden, dtype=dtype),
            tensor(at + "mlp.down_proj.weight", hidden, ffn, dtype=dtype),
            tensor(at + "input_layernorm.weight", hidden, dtype=dtype),
            tensor(at + "post_attention_layernorm.weight", hidden, dtype=dtype),
        ]

    return [
        tensor("model.embed_tokens.weight", vocab, hidden, dtype=dtype),
        *(t for n in range(layers) for t in layer(n)),
        tensor("model.norm.weight", hidden, dtype=dtype),
        tensor("lm_head.weight", vocab, hidden, dtype=dtype),
    ]


#: Counted by hand: 2·256·64 + 4·(2·64·64 + 2·32·64 + 3·176·64 + 2·64) + 64.
LLAMA_PARAMETERS = 217_664
