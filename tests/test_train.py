"""``graphmem.train`` held to numbers worked out by hand: states, gradients, checkpointing, adapters, quantized bases, loss heads.

Sizes are multiples of 512 bytes, so that rounding changes nothing.
"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch import nn  # noqa: E402

import graphmem  # noqa: E402
from graphmem.errors import GraphmemError  # noqa: E402
from graphmem.training.optimizers import optimizer_named  # noqa: E402
from graphmem.training.stages import stages  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

WIDTH, LAYERS, ROWS = 512, 8, 256
#: Of one layer: two square weights.
WEIGHTS = 2 * WIDTH * WIDTH
PARAMETERS = LAYERS * WEIGHTS
#: cuBLAS's workspace of the forward thread and of the autograd thread, on an A100.
WORKSPACES = 2 * 8_519_680
ACTIVATION = 4 * ROWS * WIDTH
#: The loss, a number.
LOSSES = 512


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def run(**settings: Any) -> graphmem.TrainingRun:
    return graphmem.train(Net(), torch.zeros(ROWS, WIDTH), loss=lambda output: output.sum(), **settings)


def llama(**changes: Any) -> Any:
    given = {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**given, **changes}))


IDS = torch.arange(512).reshape(1, 512)


def text(model: Any = None, **settings: Any) -> graphmem.TrainingRun:
    inputs = {"input_ids": IDS, "labels": IDS, "use_cache": False}
    return graphmem.train(llama() if model is None else model, inputs, **settings)


def at(found: graphmem.TrainingRun, stage: str, step: int = 1) -> dict[str, int]:
    """Kinds at the peak of a stage."""
    return next(peak.kinds for peak in stages(found.trace) if (peak.stage, peak.step) == (stage, step))  # type: ignore[return-value]


# -- optimizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        ("SGD", 0),
        ("SGD(momentum=0.9)", 4 * PARAMETERS),
        # A step counter of 4 bytes a parameter lives on the host unless the kernels are fused or capturable.
        ("AdamW", 8 * PARAMETERS),
        ("AdamW(amsgrad=True)", 12 * PARAMETERS),
        ("Adam(fused=True)", 8 * PARAMETERS + 512 * 2 * LAYERS),
        ("Adagrad", 4 * PARAMETERS),
        ("RMSprop(momentum=0.9)", 8 * PARAMETERS),
        ("Adafactor", 2 * LAYERS * 2 * 4 * WIDTH),  # a row and a column of second moments a matrix
        ("NAdam", 8 * PARAMETERS),
        ("RAdam", 8 * PARAMETERS),
        ("Muon", 4 * PARAMETERS),
        ("bitsandbytes.AdamW", 8 * PARAMETERS),
        ("bitsandbytes.AdamW8bit", 2 * PARAMETERS + 2 * 4 * PARAMETERS // 256 + 2 * 1024),
        ("bitsandbytes.Lion8bit", PARAMETERS + 4 * PARAMETERS // 256 + 1024),
        ("torchao.AdamW8bit", 2 * PARAMETERS + 2 * 4 * PARAMETERS // 256 + 2 * LAYERS * 2 * 1024),
        ("torchao.AdamW4bit", PARAMETERS + 2 * 4 * PARAMETERS // 128 + 2 * LAYERS * 2 * 512),
        ("torchao.AdamWFp8", 2 * PARAMETERS + 2 * 4 * PARAMETERS // 256),
        # A projector of rank × width, and both moments of width × rank.
        ("GaLoreAdamW(rank=64)", 2 * LAYERS * 3 * 4 * 64 * WIDTH),
        ("APOLLO(rank=32)", 2 * LAYERS * 3 * 4 * 32 * WIDTH),
        ("Lion", 4 * PARAMETERS),
        ("Sophia", 8 * PARAMETERS),
        ("ScheduleFreeAdamW", 8 * PARAMETERS),
        # Two square factors and their two eigenbases, as large as the weight itself.
        ("SOAP", (8 + 16) * PARAMETERS),
        ("Shampoo", (4 + 16) * PARAMETERS),
        ("DistributedShampoo", 4 * PARAMETERS + 2 * LAYERS * 2 * 4 * WIDTH * (WIDTH + 1)),
        ("adamw_torch_fused", 8 * PARAMETERS + 512 * 2 * LAYERS),
        ("paged_adamw_32bit", 0),
    ],
)  # fmt: skip
def test_states_of_an_optimizer(optimizer: str, states: int) -> None:
    found = run(optimizer=optimizer)
    assert at(found, "model")["optimizer"] == states if states else at(found, "model").get("optimizer", 0) == 0
    assert at(found, "optimizer step")["gradient"] == 4 * PARAMETERS


def test_foreach_holds_a_copy_of_everything_for_a_while_and_fused_does_not() -> None:
    looped, each, fused = (
        run(optimizer=f"AdamW({option})") for option in ("foreach=False", "foreach=True", "fused=True")
    )
    assert at(fused, "optimizer step").get("temporary", 0) == 0
    assert at(each, "optimizer step")["temporary"] == 4 * PARAMETERS
    assert (
        at(looped, "optimizer step")["temporary"] == 3 * 4 * WIDTH * WIDTH
    )  # three results of one parameter's formula
    assert run().peak == each.peak  # foreach is what CUDA gets by default


def test_paged_states_lie_beside_the_allocator() -> None:
    found = run(optimizer="bitsandbytes.PagedAdamW")
    assert found.paged == 8 * PARAMETERS
    assert found["paged"] == 8 * PARAMETERS
    assert run(optimizer="bitsandbytes.PagedAdamW8bit").paged == 2 * PARAMETERS


def test_lbfgs_keeps_flat_vectors_pair_by_pair() -> None:
    one, more = (run(optimizer=f"LBFGS(max_iter={count})", steps=1) for count in (4, 8))
    # Each accepted iteration keeps a step and a difference of gradients, both as long as all parameters, and two numbers.
    pairs = (at(more, "optimizer step", 0)["optimizer"] - at(one, "optimizer step", 0)["optimizer"]) / (8 * PARAMETERS)
    assert pairs == pytest.approx(4, abs=0.01)


def test_small_tensors_are_not_quantized_and_the_trainer_keeps_embeddings_in_32_bits() -> None:
    net = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 32, bias=False))
    ids = torch.zeros(4, dtype=torch.int64)

    def states(optimizer: str) -> int:
        return at(graphmem.train(net, ids, loss=lambda o: o.sum(), optimizer=optimizer), "model")["optimizer"]

    table, small, maps = 6400, 8 * 2048, 2 * 1024
    blocks = 2 * 512  # 25 fp32 maxima, rounded up
    quantized = 2 * 6656  # 6,400 bytes, rounded up
    assert states("bitsandbytes.AdamW8bit") == quantized + blocks + small + maps
    assert states("adamw_bnb_8bit") == 8 * table + small + maps


def test_an_optimizer_in_backward_keeps_one_gradient() -> None:
    found = run(optimizer="SGD", optimizer_in_backward=True)
    assert max(peak.kinds.get("gradient", 0) for peak in stages(found.trace)) <= 4 * WIDTH * WIDTH
    assert at(run(optimizer="SGD"), "optimizer step")["gradient"] == 4 * PARAMETERS


# -- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "weights", "gradients", "states"),
    [
        ("fp32", 4, 4, 8), ("amp-bf16", 4, 4, 8), ("amp-fp16", 4, 4, 8), ("mixed", 2, 4, 12), ("mixed-fp16", 2, 4, 12),
        ("mixed-fp32-grads", 2, 4, 12), ("bf16-fp32-states", 2, 2, 8), ("bf16", 2, 2, 4), ("fp16", 2, 2, 4), ("fp8-torchao", 2, 2, 4),
        ("fp8-te", 4, 4, 8),
    ],
)  # fmt: skip
def test_bytes_a_parameter_of_a_recipe(recipe: str, weights: int, gradients: int, states: int) -> None:
    """While the optimizer steps: mixed recipes hold gradients in fp32 then, each converted and dropped in 16 bit."""
    kinds = at(run(recipe=recipe), "optimizer step")
    assert kinds["parameter"] == weights * PARAMETERS
    assert kinds["gradient"] == gradients * PARAMETERS
    assert kinds["optimizer"] == states * PARAMETERS


def test_between_backward_and_the_step_mixed_gradients_are_16_bit() -> None:
    """2 + 2 + 12 bytes a parameter, as ZeRO counts them; with fp32 gradients 2 + 4 + 12."""
    plain, wide = run(recipe="mixed", accumulation=2), run(recipe="mixed-fp32-grads", accumulation=2)
    kinds, wider = at(plain, "forward"), at(wide, "forward")
    assert (kinds["parameter"], kinds["gradient"], kinds["optimizer"]) == (
        2 * PARAMETERS,
        2 * PARAMETERS,
        12 * PARAMETERS,
    )
    assert (wider["parameter"], wider["gradient"], wider["optimizer"]) == (
        2 * PARAMETERS,
        4 * PARAMETERS,
        12 * PARAMETERS,
    )


def test_flat_buffers_hold_every_gradient_in_fp32_beside_the_16_bit_ones() -> None:
    """1.5 B parameters: a buffer of 6 GB (ZeRO, section 3.2)."""
    kinds = at(run(recipe="mixed", flat_buffers=True), "optimizer step")
    assert kinds["gradient"] == (2 + 4) * PARAMETERS
    assert at(run(recipe="mixed"), "optimizer step")["gradient"] == 4 * PARAMETERS


def test_fp8_saves_a_byte_where_transformer_engine_does_and_two_where_torchao_does() -> None:
    bf16, torchao = run(recipe="bf16"), run(recipe="fp8-torchao")
    assert torchao["saved"] == bf16["saved"] == (LAYERS * 2 - 1) * ACTIVATION // 2 + LOSSES
    amp, te = run(recipe="amp-bf16"), run(recipe="fp8-te")
    values = LAYERS * ROWS * WIDTH
    # amp: bf16 copies of the weights (but the first: the run's input needs no gradient), both inputs in bf16, of which the second
    # is the rectifier's result.
    assert amp["saved"] == 2 * (PARAMETERS - WIDTH * WIDTH) + (2 + 2) * values + LOSSES
    # te: the weights in fp8, both ways round on an A100; both inputs in one byte each; and the rectifier's result for itself.
    assert te["saved"] == 2 * PARAMETERS + (1 + 1 + 2) * values + LOSSES


def test_a_scaler_adds_numbers_only() -> None:
    scaled, plain = run(recipe="amp-fp16"), run(recipe="amp-bf16")
    assert 0 < scaled.peak - plain.peak <= 16 * 512
    assert any("do not overflow" in note for note in scaled.report().notes)


# -- gradients ------------------------------------------------------------------------------------------------------


def test_accumulation_finds_gradients_when_forward_begins_again() -> None:
    once, twice = run(accumulation=1), run(accumulation=2)
    assert at(once, "forward").get("gradient", 0) == 0
    assert at(twice, "forward")["gradient"] == 4 * PARAMETERS
    peaks = [max(peak.peak for peak in stages(found.trace) if peak.stage == "backward") for found in (once, twice)]
    assert peaks[1] > peaks[0]
    assert (
        at(twice, "backward")["activation"] > at(once, "backward")["activation"]
    )  # the peak is where backward begins, not where it ends
    assert run(accumulation=2).peak == run(accumulation=5).peak


def test_gradients_that_are_kept_and_zeroed_are_there_in_the_next_forward() -> None:
    kept = run(set_to_none=False)
    assert at(kept, "forward", 0).get("gradient", 0) == 0
    assert at(kept, "forward", 1)["gradient"] == 4 * PARAMETERS


def test_clipping_takes_a_norm_a_parameter_and_no_copy() -> None:
    clipped, plain = run(clip_norm=1.0), run()
    ours = [op.name for op in clipped.trace.ops if op.phase == "optimizer"]
    assert any("norm" in name for name in ours)
    assert not any("norm" in op.name for op in plain.trace.ops if op.phase == "optimizer")
    assert at(clipped, "optimizer step")["gradient"] == 4 * PARAMETERS
    assert clipped.peak == plain.peak  # the norms are gone before the optimizer's own temporaries come


def test_the_first_step_has_no_states_yet() -> None:
    found = run()
    assert at(found, "forward", 0).get("optimizer", 0) == 0
    assert at(found, "forward", 1)["optimizer"] == 8 * PARAMETERS


# -- checkpointing --------------------------------------------------------------------------------------------------


def kept(**settings: Any) -> int:
    return run(**settings)["saved"]  # type: ignore[return-value]


def test_what_checkpointing_keeps() -> None:
    """Without: a layer keeps its input, the rectifier's result (which is the second product's input). With: its input."""
    loss = LOSSES  # a sum does not keep its input
    # The first layer's input is the run's own input and was there before.
    assert kept() == LAYERS * 2 * ACTIVATION - ACTIVATION + loss
    assert kept(checkpointing="layers") == (LAYERS - 1) * ACTIVATION + loss
    assert kept(checkpointing="every-1") == kept(checkpointing="layers")
    assert kept(checkpointing="every-2") == (LAYERS // 2 - 1) * ACTIVATION + loss
    assert kept(checkpointing="sqrt") == (3 - 1) * ACTIVATION + loss  # three segments of three, three and two layers
    assert kept(checkpointing="every-8") == loss


def test_selective_checkpointing_keeps_what_it_is_told() -> None:
    """Both products' results of each layer, beside its input."""
    products = kept(checkpointing="selective", save=["aten.mm"])
    assert products == kept(checkpointing="layers") + LAYERS * 2 * ACTIVATION
    assert kept(checkpointing="selective", save=["aten.relu"]) == kept(checkpointing="layers") + LAYERS * ACTIVATION


def test_recomputing_costs_what_the_layers_cost_forward() -> None:
    """Forward once more: half of what backward takes, a third of the whole."""
    found = run(checkpointing="layers")
    forward = LAYERS * 2 * 2 * ROWS * WIDTH * WIDTH
    backward = 2 * forward - 2 * ROWS * WIDTH * WIDTH  # no gradient of the first product's input
    # A recomputation stops once it has what is saved: the second product's result is not.
    assert found["flops"] == forward + backward + forward // 2
    assert found["recompute"] == pytest.approx(forward / 2 / (forward + backward), abs=1e-4)
    assert "recompute" not in [figure.key for figure in run().report().sections[0].figures]


def test_offloaded_activations_are_on_the_host() -> None:
    found = run(offload=True)
    assert found["saved"] == LOSSES
    # Two tensors a layer, the run's input among them; the rectifier's result is saved by it and by the product: twice.
    assert found["offloaded"] == LAYERS * 3 * ACTIVATION
    assert at(found, "backward")["activation"] < at(run(), "backward")["activation"]


def test_offloading_what_checkpointing_keeps() -> None:
    assert run(offload=True, checkpointing="layers")["offloaded"] == LAYERS * ACTIVATION


def test_a_models_own_checkpointing() -> None:
    assert text(checkpointing="model")["saved"] == text(checkpointing="layers")["saved"]


# -- adapters and quantized bases -----------------------------------------------------------------------------------


def test_lora_trains_two_thin_matrices_a_layer() -> None:
    found = text(adapter="lora", rank=4, target_modules=["q_proj", "v_proj"])
    trained = 8 * 2 * 4 * (256 + 256)
    assert found.trained == trained
    kinds = at(found, "optimizer step")
    assert kinds["gradient"] == 4 * trained
    assert kinds["optimizer"] == 8 * trained
    full = text()
    assert full.trained == full.parameters
    assert found["saved"] < full["saved"]  # frozen layers keep no inputs


@pytest.mark.parametrize(
    ("method", "options", "trained"),
    [
        ("dora", {"rank": 4, "target_modules": "q_proj"}, 8 * (4 * 512 + 256)),  # and a magnitude an output
        ("ia3", {"target_modules": "k_proj,v_proj"}, 8 * 2 * 256),
        ("prompt", {"virtual_tokens": 10}, 10 * 256),
        ("prefix", {"virtual_tokens": 10}, 10 * 8 * 2 * 256),
    ],
)
def test_other_adapters(method: str, options: dict[str, Any], trained: int) -> None:
    assert text(adapter=method, **options).trained == trained


def test_dropout_of_an_adapter_keeps_its_mask_and_result() -> None:
    plain, dropped = (text(adapter="lora", target_modules="q_proj", adapter_dropout=p) for p in (0.0, 0.1))
    values = 512 * 256
    # The adapter's product keeps its input, dropped or not; a mask of bytes comes with it, but where the input needs no gradient.
    assert dropped["saved"] - plain["saved"] == (8 - 1) * values


@pytest.mark.parametrize(
    ("load_in", "bytes_of"),
    [
        # Two weights a byte; an fp32 maximum a block of 64; a code of 16 fp32 values.
        ("nf4", lambda out, inp: out * inp // 2 + 4 * out * inp // 64 + 512),
        # The maxima in one byte each, an fp32 maximum for 256 of them, two codes, an offset.
        ("nf4-double", lambda out, inp: out * inp // 2 + out * inp // 64 + -(-4 * out * inp // 64 // 256 // 512) * 512 + 512 + 1024 + 512),
        ("int8", lambda out, inp: out * inp + 4 * out),
    ],
)  # fmt: skip
def test_a_quantized_base(load_in: str, bytes_of: Any) -> None:
    found = text(recipe="bf16", adapter="lora", rank=4, target_modules=["q_proj"], load_in=load_in)
    linears = 8 * (4 * bytes_of(256, 256) + 2 * bytes_of(512, 256) + bytes_of(256, 512))
    rest = 2 * (2 * 4096 * 256 + 8 * 2 * 256 + 256)  # embedding, head and norms in bf16
    adapters = 4 * 8 * 4 * 512
    first = stages(found.trace)[0].kinds
    ids, frequencies = 8 * 512, 2 * 512  # labels are the same tensor; rotary ones, and a copy of them
    assert first["parameter"] + first["buffer"] == linears + rest + adapters + frequencies
    assert found.trace.start == first["parameter"] + first["buffer"] + ids
    assert found.parameters == llama().num_parameters() + found.trained


def test_dequantized_weights_come_and_go() -> None:
    found = text(recipe="bf16", adapter="lora", rank=4, target_modules=["q_proj"], load_in="nf4")
    made = [
        found.trace.blocks[found.trace.values[op.outputs[0]].block]
        for op in found.trace.ops
        if op.name == "aten.new_empty.default"
    ]  # type: ignore[index]
    gate_and_up = 8 * 2
    # Forward of both, backward of both, in each of two steps.
    assert len([block for block in made if block.shape == (512, 256)]) == 2 * 2 * gate_and_up
    assert {block.kind for block in made} == {"temporary"}
    assert {block.dtype for block in made} == {"bfloat16"}


# -- loss heads, attention, packing, compile ------------------------------------------------------------------------

LOGITS = 512 * 4096


def test_full_logits_are_upcast_and_chunks_never_are_whole() -> None:
    full, chunked, fused = (text(recipe="bf16", loss=head) for head in ("full", "chunked", "fused"))
    largest = [
        max(block.nbytes for block in found.trace.blocks if block.op is not None and 4096 in block.shape and 256 not in block.shape)
        for found in (full, chunked, fused)
    ]  # fmt: skip
    assert largest[0] == 4 * LOGITS  # fp32
    # PyTorch's chunks and Liger's, of 32 rows (vocabulary / width = 16 chunks).
    assert largest[2] == 2 * 32 * 4096
    assert largest[1] < 2 * LOGITS
    assert fused.peak < full.peak
    assert chunked.peak < full.peak


def test_attention_that_stores_scores() -> None:
    eager, sdpa = (text(recipe="bf16", model=llama(attn_implementation=kind)) for kind in ("eager", "sdpa"))
    scores = 4 * 512 * 512  # heads × tokens²
    # Scores in fp32, in which softmax is taken, and in bf16; the other keeps a log of sums a row, and two numbers for dropout.
    assert eager["saved"] - sdpa["saved"] == 8 * ((4 + 2) * scores - 4 * 4 * 512 - 2 * 512)


def test_packing_puts_sequences_in_one_row() -> None:
    settings: dict[str, Any] = {
        "offline": True,
        "recipe": "bf16",
        "batch_size": 4,
        "seq_len": 128,
        "attention": "flash",
    }
    packed = graphmem.train("HuggingFaceTB/SmolLM2-135M", packed=True, **settings)
    padded = graphmem.train("HuggingFaceTB/SmolLM2-135M", **settings)
    inputs = packed.trace.settings["inputs"]
    assert "input_ids int64[1,512]" in inputs
    assert "position_ids int64[1,512]" in inputs
    assert abs(packed.peak / padded.peak - 1) < 0.01


def test_compile_saves_what_the_partitioner_chooses() -> None:
    """relu(x W₁) W₂ + x: products keep their inputs; the rectifier is computed again from the first product, or its result kept: one of them."""
    compiled, eager = run(compile=True), run()
    assert compiled["saved"] <= eager["saved"]
    # The input of each layer, and one tensor for the rectifier; the masks of the rectifiers may be kept as bytes instead.
    assert compiled["saved"] >= (2 * LAYERS - 1) * ACTIVATION
    assert at(compiled, "optimizer step")["gradient"] == 4 * PARAMETERS
    assert compiled.trace.end == eager.trace.end


# -- the result -----------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_too_small_and_one_that_is_not() -> None:
    small, large = run(memory="500MiB"), run(gpu="A100 SXM4 80GB")
    assert small.fits is False
    assert large.fits is True
    assert (small.margin or 0) < 0 < (large.margin or 0)
    assert large.margin == large.trace.device.memory - large.trace.device.context_size - large.reserved  # type: ignore[operator]
    assert run().fits is None


def test_changes_say_what_running_them_gives() -> None:
    found = graphmem.train(
        "openai-community/gpt2", offline=True, batch_size=8, recipe="amp-bf16", memory="10GiB", seq_len=1024
    )
    rows = {row["change"]: row for row in found.report()["changes"]}  # type: ignore[union-attr]
    again = graphmem.train(
        "openai-community/gpt2",
        offline=True,
        batch_size=8,
        recipe="amp-bf16",
        memory="10GiB",
        seq_len=1024,
        checkpointing="layers",
    )
    row = rows["--checkpointing layers"]
    assert row["reserved"] == again.reserved
    assert row["saving"] == found.reserved - again.reserved
    assert row["fits"] == ("yes" if again.fits else "no")


def test_the_stages_reach_the_peak() -> None:
    for settings in ({}, {"checkpointing": "layers"}, {"accumulation": 2}, {"steps": 1}):
        found = run(**settings)
        assert max(peak.peak for peak in stages(found.trace)) == found.peak


def test_the_module_given_is_not_changed() -> None:
    net = Net()
    before = {name: (tensor.dtype, tensor.device, tensor.requires_grad) for name, tensor in net.named_parameters()}
    classes = [type(module) for module in net.modules()]
    graphmem.train(
        net,
        torch.zeros(ROWS, WIDTH),
        loss=lambda output: output.sum(),
        recipe="bf16",
        checkpointing="layers",
        adapter="lora",
        target_modules=["up"],
        load_in="nf4",
    )
    assert before == {
        name: (tensor.dtype, tensor.device, tensor.requires_grad) for name, tensor in net.named_parameters()
    }
    assert classes == [type(module) for module in net.modules()]


def test_a_fit_by_giving_cached_memory_back_is_said() -> None:
    """Reserved is what PyTorch reserves on that GPU; what it would take without a limit is a note."""
    whole = run()
    short = run(memory=whole.reserved + whole.trace.device.context_size - 2**21)
    if short.fits:
        assert short.reserved < whole.reserved
        assert any("gives cached memory back" in note for note in short.report().notes)
    large = run(memory=whole.reserved + whole.trace.device.context_size)
    assert large.fits
    assert large.margin == 0
    assert any("less than CUDA contexts vary" in warning for warning in large.report().warnings)


def test_convolutions_and_several_towers_report() -> None:
    """A first convolution has no gradient of its input; a count of operations must not cost the answer."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
    found = graphmem.train(net, torch.zeros(2, 3, 16, 16), gpu="T4")
    forward = 2 * 2 * 14 * 14 * 8 * 3 * 9 + 2 * 2 * 8 * 14 * 14 * 10
    weights = 2 * 2 * 14 * 14 * 8 * 3 * 9
    assert found["flops"] == forward + weights + 2 * 2 * 2 * 8 * 14 * 14 * 10
    assert found.report().warnings[0].startswith("the loss is taken as the sum of the outputs")
    found = graphmem.train("openai/clip-vit-base-patch32", offline=True, steps=1)
    assert found["flops"] > 0


def test_what_a_gpu_lacks_is_warned_of() -> None:
    assert run(recipe="fp8-te", gpu="T4").report().warnings[0].startswith("fp8 products need")
    assert any("bf16 is emulated" in warning for warning in run(recipe="bf16", gpu="T4").report().warnings)
    assert not run(recipe="fp8-te", gpu="RTX 4090").report().warnings


def test_again_changes_a_setting() -> None:
    assert run().again(checkpointing="layers").peak == run(checkpointing="layers").peak


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": "AdamX"}, "optimizer 'AdamX': did you mean 'Adamax'"),
        ({"optimizer": "AdamW(lr)"}, "write it as SGD(momentum=0.9)"),
        ({"optimizer": "AdamW(momentum=0.9)"}, "optimizer AdamW has no option 'momentum'"),
        ({"optimizer": "AdamW(paged=True)"}, "paged states are bitsandbytes'"),
        ({"optimizer": "PagedMuon"}, "paged states are bitsandbytes'"),
        ({"optimizer": "AdamW(fused=True, foreach=True)"}, "fused and foreach exclude each other"),
        ({"optimizer": "AdamW(fused=True)", "device": "cpu"}, "the fused kernels that graphmem knows are CUDA's"),
        ({"optimizer": "SparseAdam"}, "takes sparse gradients"),
        ({"optimizer": "SGD(nesterov=True)"}, "torch.optim.SGD refuses"),
        ({"recipe": "bf61"}, "recipe 'bf61': did you mean 'bf16'"),
        ({"gpu": "H1000"}, "gpu 'H1000'"),
        ({"checkpointing": "layer"}, "did you mean 'layers'"),
        ({"checkpointing": "every-0"}, "checkpointing 'every-0'"),
        ({"checkpointing": "model"}, "Net has no gradient_checkpointing_enable of its own; use 'layers'"),
        ({"checkpointing": "layers", "save": ["aten.mm"]}, "add --checkpointing selective"),
        ({"checkpointing": "selective", "save": ["aten.nm"]}, "torch has no operator 'aten.nm'"),
        ({"adapter": "lora", "rank": 0, "target_modules": "up"}, "rank 0: must be 1 or more"),
        ({"adapter": "laro"}, "adapter 'laro': did you mean 'lora'"),
        ({"adapter": "lora", "target_modules": "q_proj"}, "target modules q_proj: match no module of Net; its linear layers are called up, down"),
        ({"adapter": "lora"}, "name the layers with --target-modules up,down"),
        ({"rank": 8}, "rank: of an adapter; add --adapter lora"),
        ({"adapter": "ia3", "rank": 8, "target_modules": "up"}, "rank: is LoRA's and DoRA's"),
        ({"adapter": "lora", "virtual_tokens": 5, "target_modules": "up"}, "virtual tokens: are those of prompt"),
        ({"adapter": "dora", "load_in": "nf4", "target_modules": "up"}, "dora together are not modelled"),
        ({"memory": "24"}, "memory 24 bytes: no GPU has so little; write 24GiB"),
        ({"adapter": "prompt", "target_modules": "up"}, "target modules are for lora, dora and ia3"),
        ({"load_in": "nf4"}, "quantized weights are not trained; add an adapter"),
        ({"load_in": "nf5", "adapter": "lora"}, "load-in 'nf5': did you mean 'nf4'"),
        ({"load_in": "nf4", "adapter": "lora", "recipe": "mixed"}, "exclude each other"),
        ({"optimizer_in_backward": True, "accumulation": 2}, "optimizer in backward and accumulation exclude each other"),
        ({"optimizer_in_backward": True, "clip_norm": 1.0}, "optimizer in backward and clip_norm exclude each other"),
        ({"flat_buffers": True}, "add --recipe mixed"),
        ({"recipe": "bf16-adam8bit", "optimizer": "SGD"}, "is about bitsandbytes.AdamW8bit"),
        ({"clip_norm": -1.0}, "must be more than 0"),
        ({"accumulation": 0}, "must be 1 or more"),
        ({"compile": True, "checkpointing": "layers"}, "compile and checkpointing together are not modelled"),
        ({"batch_size": 2}, "--batch-size: for a model id"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_bad_input_is_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(GraphmemError) as caught:
        run(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loss_head_needs_a_language_model() -> None:
    with pytest.raises(GraphmemError, match="Net is no causal language model"):
        graphmem.train(Net(), torch.zeros(ROWS, WIDTH), loss="fused")
    with pytest.raises(GraphmemError, match="loss 'fusd': did you mean 'fused'"):
        graphmem.train(Net(), torch.zeros(ROWS, WIDTH), loss="fusd")


def test_a_sequence_beyond_the_models_positions_is_warned_of() -> None:
    model = llama(max_position_embeddings=256)
    assert text(model).report().warnings == ("512 tokens are more than the 256 positions the model was made for",)


def test_optimizers_by_the_names_people_use() -> None:
    for name, known in (
        ("adamw", "AdamW"),
        ("adamw_torch", "AdamW"),
        ("paged_adamw_8bit", "bitsandbytes.PagedAdamW8bit"),
        ("Lion8bit", "bitsandbytes.Lion8bit"),
    ):
        assert optimizer_named(name).name == known
