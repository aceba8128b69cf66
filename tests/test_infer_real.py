"""Generation as it is traced against real runs on the CPU: transformers' own models and cache classes, every allocation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import graphmem
from graphmem.engines.transformers.run import Generated, generated
from graphmem.engines.transformers.settings import Generating
from graphmem.errors import GraphmemError
from graphmem.measuring.cpu_events import cpu_events, peak_rise
from graphmem.measuring.run import measured
from graphmem.sources.load import Access
from graphmem.tracing.device import CPU, traced_for
from graphmem.tracing.run import trace_module
from graphmem.tracing.targets import Choices
from graphmem.workload import Generation, Workload
from tests.test_kv_cache import RUNS

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT = torch.randint(1, 100, (2, 40), generator=torch.Generator().manual_seed(0))


def _model(case: str) -> Any:
    architecture, settings = RUNS[case]
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    return cls(cls.config_class(**settings)).eval()


#: Every cache class, and models whose layers keep different things. Static and quantized caches: where transformers has them.
CASES = [
    *((case, {}) for case in ("llama GQA", "mistral window", "gemma3 five to one", "qwen3-next hybrid", "jamba", "mamba", "falcon-h1", "gpt2", "bloom", "t5", "gpt-oss", "deepseek-v3 as transformers caches it", "lfm2 convolutions", "gemma3n shares")),
    *((case, {"cache": "static", "max_cache_len": 48}) for case in ("llama GQA", "gemma3 five to one", "jamba", "gpt2")),
    *(("llama GQA", {"cache": cache}) for cache in ("fp8", "quanto-int4", "quanto-int2", "hqq-int8")),
    *((case, {"beams": 2}) for case in ("llama GQA", "mistral window", "mamba", "bloom")),
    ("llama GQA", {"last_logits_only": False}), ("llama GQA", {"samples": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("case", "settings"), CASES, ids=str)
def test_generation_peaks_where_a_real_run_does(case: str, settings: dict[str, Any]) -> None:
    workload = Workload(grad=False, fold=False, generation=Generation(decode_steps=3, **settings))
    found = measured(_model(case), (), {"input_ids": PROMPT}, workload, "cpu", case, case, {}, ())
    assert found.predicted.peak == found.real.peak
    # What is held at the end is dropped outside of the record.
    assert found.matched >= 0.98 * len(found.real.events)


@pytest.mark.parametrize("case", ["llama GQA", "gemma3 five to one", "qwen3-next hybrid", "mamba"])
def test_generate_itself_takes_what_the_loop_takes(case: str) -> None:
    """`model.generate` also keeps what tells whether sequences are finished: some hundred bytes here."""
    model = _model(case)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    real = peak_rise(cpu_events(lambda: model.generate(PROMPT, max_new_tokens=4, do_sample=False)))
    workload = Workload(grad=False, fold=False, generation=Generation(decode_steps=3))
    trace = trace_module(model, (), {"input_ids": PROMPT}, workload, CPU)
    rise = trace.peak - trace.start
    assert abs(real - rise) < 1_500
    assert abs(real - rise) <= 0.01 * real


def _generated(target: str, **settings: Any) -> Generated:
    return generated(
        target, Generating(**settings), traced_for("cuda", None, None), Choices(access=Access(offline=True))
    )


def test_the_last_steps_stand_for_all_of_them() -> None:
    """Twelve tokens traced one by one, and as prefill and the last two steps: the same cache, the same last step."""
    found = _generated("HuggingFaceTB/SmolLM2-135M", prompt=30, new_tokens=12)
    workload = Workload(grad=False, fold=False, generation=Generation(decode_steps=11))
    from graphmem.tracing.targets import resolve

    module, _, kwargs, name = resolve(
        "HuggingFaceTB/SmolLM2-135M", (), Workload(grad=False), Choices(1, 30, access=Access(offline=True))
    )
    kwargs.pop("use_cache", None)
    whole = trace_module(module, (), kwargs, workload, traced_for("cuda", None, None), name)
    assert found.decode is not None
    last = max(op.step for op in whole.ops)
    peaks = [
        total
        for event, total in zip(whole.events, whole.totals, strict=True)
        if event.op is not None and whole.ops[event.op].step == last
    ]
    assert found.decode.nbytes == max(peaks)
    assert found.steady == whole.end


def test_cache_grows_by_a_token_a_step_and_is_the_configs() -> None:
    estimate = graphmem.infer("Qwen/Qwen2.5-0.5B", prompt=1000, new_tokens=200, batch_size=3, offline=True)
    rows = list(estimate["phases"])  # type: ignore[call-overload]
    one = 24 * 2 * 2 * 64 * 2
    assert rows[0]["cache"] == 3 * 1000 * one
    # Each layer's tensors are rounded up to 512 B.
    assert 0 <= rows[1]["cache"] - 3 * 1199 * one <= 24 * 2 * 512
    assert sum(item.nbytes for item in estimate.items) == estimate.total


def test_logits_of_the_whole_prompt() -> None:
    last = graphmem.infer("HuggingFaceTB/SmolLM2-135M", prompt=2000, new_tokens=2, offline=True)
    every = graphmem.infer("HuggingFaceTB/SmolLM2-135M", prompt=2000, new_tokens=2, all_logits=True, offline=True)
    assert int(every["prefill"]) - int(last["prefill"]) > 1999 * 49152 * 2 * 0.5  # type: ignore[arg-type]


def test_offloaded_caches_leave_the_gpu() -> None:
    kept = graphmem.infer("Qwen/Qwen2.5-0.5B", prompt=2000, new_tokens=8, offline=True)
    away = graphmem.infer("Qwen/Qwen2.5-0.5B", prompt=2000, new_tokens=8, cache="offloaded", offline=True)
    # All layers but the one that runs and the one that is fetched.
    assert int(kept["decode"]) - int(away["decode"]) == pytest.approx(22 / 24 * 2007 * 24 * 512, rel=0.05)  # type: ignore[arg-type]


def test_a_quantized_checkpoint_counts_as_stored() -> None:
    found = graphmem.infer("openai/gpt-oss-20b", prompt=100, new_tokens=4, offline=True)
    assert found.item("weights").nbytes == pytest.approx(13_761_264_768, rel=1e-4)
    assert any("its weights count as stored" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt": 9000},
            "9,000 prompt and 128 new tokens: HuggingFaceTB/SmolLM2-135M has positions for 8,192; lower --prompt or --new-tokens",
        ),
        ({"cache": "elastic"}, "cache 'elastic': did you mean 'static' or 'offloaded-static'? There are dynamic"),
        ({"prompt": 0}, "prompt 0: must be 1 or more"),
        ({"max_model_len": 4}, "max-model-len: an option of engine vllm; this is transformers"),
        ({"colour": 4}, "colour: There are prompt, new_tokens"),
        ({"engine": "sglang"}, "engine 'sglang': There are transformers, vllm, llama.cpp"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphmemError) as error:
        graphmem.infer("HuggingFaceTB/SmolLM2-135M", offline=True, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_generates_nothing() -> None:
    with pytest.raises(
        GraphmemError, match="BertForMaskedLM generates no tokens; graphmem trace shows one forward of it"
    ):
        graphmem.infer("google-bert/bert-base-uncased", prompt=100, offline=True)
    with pytest.raises(
        GraphmemError,
        match="cache 'fp8': transformers quantizes full attention only; this model has layers of sliding_attention",
    ):
        graphmem.infer("google/gemma-3-1b-it", cache="fp8", offline=True)
