"""Depth folding gives the trace of the whole, event for event, or none."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import graphmem
from graphmem.tracing.folding.stacks import foldable_stacks

SMALL = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100}
LLAMA = {**SMALL, "intermediate_size": 128, "num_key_value_heads": 2}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(num_hidden_layers=9, **LLAMA),
    "sliding and full": lambda: transformers.Gemma2Config(num_hidden_layers=15, head_dim=16, **LLAMA),
    "experts": lambda: transformers.MixtralConfig(num_hidden_layers=8, num_local_experts=4, **LLAMA),
    "dense, then experts": lambda: transformers.DeepseekV3Config(
        num_hidden_layers=11, first_k_dense_replace=3, moe_intermediate_size=32, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        **{**LLAMA, "num_key_value_heads": 4},
    ),
    "hybrid": lambda: transformers.JambaConfig(
        num_hidden_layers=32, attn_layer_period=4, attn_layer_offset=2, expert_layer_period=2, num_experts=4, use_mamba_kernels=False,
        mamba_d_state=4, mamba_dt_rank=4, **LLAMA,
    ),
    "encoder and decoder": lambda: transformers.T5Config(
        num_layers=9, d_model=64, d_ff=128, num_heads=4, d_kv=16, vocab_size=100, decoder_start_token_id=0
    ),
}  # fmt: skip


def model(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = MODELS[name]()
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        built = auto.from_config(config)
    ids = torch.arange(32).reshape(2, 16)
    return built.train(), {"input_ids": ids, "labels": ids, "use_cache": False}


def same(folded: graphmem.Trace, whole: graphmem.Trace) -> None:
    assert "folded" in folded.settings
    assert "folded" not in whole.settings
    assert folded.events == whole.events
    assert folded.blocks == whole.blocks
    assert [(o.name, o.module, o.phase, o.node, o.line) for o in folded.ops] == [
        (o.name, o.module, o.phase, o.node, o.line) for o in whole.ops
    ]
    assert folded.peak_at == whole.peak_at
    assert folded.modules == whole.modules
    assert sorted(folded.placeholders) == sorted(whole.placeholders)


@pytest.mark.parametrize("name", MODELS)
def test_training_folds_exactly(name: str) -> None:
    module, inputs = model(name)
    same(graphmem.trace(module, inputs, step="train"), graphmem.trace(module, inputs, step="train", fold=False))


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, lambda p: torch.optim.Adam(p, foreach=False), lambda p: torch.optim.Adam(p, fused=True)],
)
def test_with_every_kind_of_optimizer_and_two_steps(optimizer: object) -> None:
    module, inputs = model("llama")
    settings = {"step": "train", "optimizer": optimizer, "steps": 2, "autocast": torch.bfloat16}
    same(graphmem.trace(module, inputs, **settings), graphmem.trace(module, inputs, fold=False, **settings))  # type: ignore[arg-type]


def test_with_checkpointing_and_without_grad() -> None:
    module, inputs = model("llama")
    same(graphmem.trace(module, inputs, grad=False), graphmem.trace(module, inputs, grad=False, fold=False))
    module.activation_checkpointing_enable()
    same(graphmem.trace(module, inputs, step="train"), graphmem.trace(module, inputs, step="train", fold=False))


def test_the_graph_of_a_folded_trace_is_whole() -> None:
    module, inputs = model("llama")
    graph = graphmem.trace(module, inputs, step="train").graph
    graph.lint()
    whole = graphmem.trace(module, inputs, step="train", fold=False).graph
    assert [str(n.target) for n in graph.nodes if n.op == "call_function"] == [
        str(n.target) for n in whole.nodes if n.op == "call_function"
    ]
    assert [len(n.all_input_nodes) for n in graph.nodes if n.op != "placeholder"] == [
        len(n.all_input_nodes) for n in whole.nodes if n.op != "placeholder"
    ]


class Layers(nn.Module):
    """Twelve layers, run in a way of one's own."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run, self.layers = run, nn.ModuleList(nn.Linear(8, 8) for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.run == "counted":
            for number in range(12):
                x = self.layers[number](x)
            return x
        if self.run == "joined":
            return torch.cat([x := layer(x) for layer in self.layers])
        first = x
        for layer in self.layers:
            x = layer(x) + (first if self.run == "skip" else 0)
            if self.run == "reaching":
                first, x = x, x + first
        return x


@pytest.mark.parametrize("run", ["counted", "joined", "skip", "reaching", "plain"])
def test_whatever_the_model_does_with_its_layers_the_trace_is_the_same(run: str) -> None:
    module, x = Layers(run), torch.zeros(2, 8)
    folded, whole = (graphmem.trace(module, x, step="train", fold=fold) for fold in (True, False))
    assert ("folded" in folded.settings) == (run in ("skip", "plain"))
    assert folded.events == whole.events
    assert folded.blocks == whole.blocks


def test_layers_that_differ_in_what_they_do_are_not_alike() -> None:
    class Scaled(nn.Linear):
        def __init__(self, scale: float) -> None:
            super().__init__(8, 8)
            self.scale = scale

    assert foldable_stacks(nn.ModuleDict({"all": nn.Sequential(*(Scaled(1.0) for _ in range(8)))}))
    assert not foldable_stacks(nn.ModuleDict({"all": nn.Sequential(*(Scaled(n**0.5) for n in range(8)))}))


def test_the_module_is_whole_again_after_a_failure() -> None:
    class Fails(Layers):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise ValueError("after the layers")

    module = Fails("plain")
    with pytest.raises(graphmem.GraphmemError, match="after the layers"):
        graphmem.trace(module, torch.zeros(2, 8))
    assert len(module.layers) == 12


class Special(nn.Module):
    """Layers that look alike, one of which is treated otherwise where folding does not run it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layers = how, nn.ModuleList(nn.Linear(8, 8) for _ in range(16))
        if how == "private":
            self.layers[11]._wide = True
        if how == "tied":
            self.layers[11].weight = self.layers[10].weight

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        kept = []
        for index, layer in enumerate(self.layers):
            with torch.set_grad_enabled(self.how != "no grad" or index >= 11):
                x = layer(x)
            if self.how == "operation" and index == 11:
                x = x.repeat(3, 1)
            if self.how == "kept" and index in (5, 11):
                kept.append(x)
            if getattr(layer, "_wide", False):
                x = torch.cat([x, x])
        return [*kept, x]


@pytest.mark.parametrize("how", ["operation", "kept", "private", "tied", "no grad"])
@pytest.mark.parametrize("step", ["forward", "train"])
def test_a_special_layer_among_those_left_out_is_noticed(how: str, step: str) -> None:
    module, x = Special(how), torch.zeros(2, 8)
    settings = {"step": step, "grad": step == "train", "loss": lambda outputs: outputs[0].sum()}
    folded, whole = (graphmem.trace(module, x, fold=fold, **settings) for fold in (True, False))  # type: ignore[arg-type]
    assert folded.events == whole.events
    assert folded.blocks == whole.blocks
    assert folded.start == whole.start


def test_what_a_model_installs_when_first_called_is_not_left_from_the_shortened_run() -> None:
    config = transformers.MixtralConfig(num_hidden_layers=9, num_local_experts=4, **LLAMA)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config).train()
    ids = torch.arange(32).reshape(2, 16)
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False, "output_router_logits": True}
    folded, whole = (graphmem.trace(module, inputs, step="train", fold=fold) for fold in (True, False))
    assert [op.name for op in folded.ops] == [op.name for op in whole.ops]
    assert folded.events == whole.events
