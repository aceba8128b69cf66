"""The tiny models that tracing is checked against really run: a few families here, every class in the accuracy runs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from graphmem.measuring.cpu_events import cpu_events  # noqa: E402
from tests.accuracy.architectures import Architecture, architectures, build, inputs, loss, runnable, unrunnable  # noqa: E402
from tests.accuracy.network import Network, tensors  # noqa: E402
from tests.accuracy.networks import networks  # noqa: E402
from tests.accuracy.real import kept  # noqa: E402

FAMILIES = [
    "BertForMaskedLM",
    "CLIPModel",
    "DeepseekV3ForCausalLM",
    "DetrForObjectDetection",
    "GPT2LMHeadModel",
    "Gemma3ForConditionalGeneration",
    "LlamaForCausalLM",
    "LlamaForSequenceClassification",
    "MambaForCausalLM",
    "MixtralForCausalLM",
    "Qwen2_5_VLForConditionalGeneration",
    "SwinForImageClassification",
    "T5ForConditionalGeneration",
    "Wav2Vec2ForCTC",
    "WhisperForConditionalGeneration",
]
BY_NAME = {arch.name: arch for arch in architectures()}
pytestmark = pytest.mark.filterwarnings("default")  # Models warn about what they were configured with.


def test_every_class_is_listed_once_and_is_runnable_or_has_a_reason() -> None:
    names = [arch.name for arch in architectures()]
    assert names == sorted(set(names))
    assert len(names) > 1500
    assert {arch.name for arch in runnable()} | {entry.name for entry in unrunnable()} == set(names)
    assert all(entry.reason for entry in unrunnable())
    assert len(runnable()) > 0.95 * len(names)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_and_learns(name: str) -> None:
    arch = BY_NAME[name]
    module = build(arch)
    with torch.no_grad():
        assert any(tensor.numel() for tensor in tensors(dict(module(**inputs(arch, module)))))
    module.train()
    loss(module(**inputs(arch, module, labels=True))).backward()
    learnt = [parameter.grad is not None for parameter in module.parameters() if parameter.requires_grad]
    assert sum(learnt) > 0.8 * len(learnt)  # Some towers keep a pooling head that nobody reads.


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Gemma3ForConditionalGeneration"])
def test_a_model_on_meta_has_the_same_parameters_and_inputs(name: str) -> None:
    arch = BY_NAME[name]
    module = build(arch)
    with torch.device("meta"):
        hollow = build(arch)
    assert {key: value.shape for key, value in module.state_dict().items()} == {
        key: value.shape for key, value in hollow.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in hollow.parameters())
    first, second = inputs(arch, module), inputs(arch, hollow)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) and not second[key].is_meta for key in first)


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = build(BY_NAME["GPT2LMHeadModel"])
    assert torch.equal(torch.rand(1), expected)
    second = build(Architecture("GPT2LMHeadModel", "gpt2", ""))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("network", networks(), ids=lambda network: network.name)
def test_a_plain_network_runs_and_every_parameter_learns(network: Network) -> None:
    module, batch = network.build(), network.inputs()
    assert any(tensor.numel() for tensor in tensors(module.eval()(*batch)))
    network.train(module.train(), batch)
    assert all(parameter.grad is not None for parameter in module.parameters())
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in network.build().parameters())


@pytest.mark.parametrize("name", ["checkpoint-reentrant", "gradient-accumulation", "lstm-packed", "storage-resize"])
def test_a_step_has_the_same_events_twice(name: str) -> None:
    network = next(network for network in networks() if network.name == name)
    module, batch = network.build(), network.inputs()

    def step() -> None:
        network.train(module, batch)
        module.zero_grad()
        for tensor in batch:
            tensor.grad = None

    first, second = (cpu_events(step) for _ in range(2))
    assert [(event.bytes, event.op) for event in first] == [(event.bytes, event.op) for event in second]
    assert kept(first) == 0


def test_there_are_enough_plain_networks() -> None:
    assert len(networks()) >= 28
