"""Training settings run for real on the CPU, against their trace under the ``cpu`` rules: checkpointing, adapters, accumulation, loss heads …"""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from graphmem.measuring.measurement import Measurement  # noqa: E402
from graphmem.measuring.run import measured  # noqa: E402
from graphmem.training.adapters import Adapter  # noqa: E402
from graphmem.training.prepare import inputs_in, prepared, workload_of  # noqa: E402
from graphmem.training.settings import Training  # noqa: E402
from graphmem.workload import Workload  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

LAYERS = 4
#: What ``torch.get_rng_state`` returns; checkpointing keeps one a region so that dropout falls alike. On CUDA it is host memory.
RNG_STATE = 5056


def llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


def run(**settings: Any) -> Measurement:
    training = Training(**settings)
    module, _ = prepared(llama(), training)
    ids = torch.arange(128).reshape(2, 64)
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    workload = workload_of(training, Workload(fold=False), "cpu")
    return measured(module, (), inputs_in(inputs, training.precision), workload, "cpu", "llama", "llama", {}, ())


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"accumulation": 3}, {"clip_norm": 1.0}, {"loss_head": "fused"}, {"loss_head": "chunked"}, {"optimizer": "Adafactor"}, {"set_to_none": False},
        {"optimizer": "SGD(momentum=0.9)", "accumulation": 2, "clip_norm": 0.5}, {"optimizer": "AdamW(foreach=False, amsgrad=True)"},
    ],
    ids=str,
)  # fmt: skip
def test_every_event_of_a_real_run_in_order(settings: dict[str, Any]) -> None:
    found = run(**settings)
    assert found.predicted.peak == found.real.peak
    assert found.matched >= 0.998 * len(found.real.events)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer_in_backward": True}, {"recipe": "mixed"}, {"recipe": "mixed", "flat_buffers": True}, {"recipe": "mixed-fp32-grads"},
        {"recipe": "bf16"}, {"optimizer": "Muon"},
    ],
    ids=str,
)  # fmt: skip
def test_the_peak_to_the_byte(settings: dict[str, Any]) -> None:
    """16-bit products on the CPU take scratch of oneDNN's own, which comes and goes between the events that are predicted."""
    found = run(**settings)
    assert found.predicted.peak == found.real.peak


@pytest.mark.parametrize(
    ("way", "alive"),
    [("model", 1), ("layers", 1), ("every-2", 1), ("sqrt", 1), ("selective", LAYERS)],
)
def test_checkpointing_to_the_byte(way: str, alive: int) -> None:
    """But for the states of the random generator that are alive at the peak: one of the region that is recomputed, or one of each."""
    found = run(checkpointing=way)
    assert found.real.peak - found.predicted.peak == alive * RNG_STATE
    assert found.matched == len(found.predicted.events)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "prompt", "prefix", "p-tuning"])
def test_adapters_but_for_a_few_numbers(method: Any) -> None:
    """Python's numbers (a scaling) are tensors of 4 bytes where autograd saves them; on CUDA they are host memory."""
    found = run(adapter=Adapter(method))
    assert abs(found.real.peak - found.predicted.peak) <= 160
    assert found.matched >= 0.98 * len(found.real.events)
