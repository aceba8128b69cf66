"""Published memory of Megatron-LM: golden values of its own CI (the last rank), and 8 × B200 runs (every rank)."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphmem.parallel.megatron.architecture import Architecture, Experts, Latent
from graphmem.parallel.megatron.peak import memory_of
from graphmem.parallel.megatron.settings import Megatron
from graphmem.parallel.megatron.stages import Chunk
from graphmem.tracing.device import Device
from tests.conftest import SHARED

CI, B200 = SHARED / "truth" / "multi_gpu_megatron.jsonl", SHARED / "truth" / "multi_gpu_simumax.jsonl"

#: What is not modelled, by the argument that asks for it.
NOT_MODELLED = (
    "defer-embedding-wgrad-compute", "overlap-moe-expert-parallel-comm",
    "use-megatron-fsdp", "fp8-format", "optimizer", "tp-comm-overlap", "export-model-type", "fine-grained-activation-offloading", "cuda-graph-impl",
    "use-transformer-engine-op-fuser", "moe-use-legacy",
)  # fmt: skip
DATES: dict[str, str] = {
    key: row["date"]
    for key, row in json.loads((Path(__file__).parents[2] / "fixtures" / "megatron_golden_dates.json").read_text())[
        "rows"
    ].items()
}
#: From here on their container has PyTorch 2.12 or later, whose cuBLAS workspaces are large on Blackwell too.
_TORCH_2_12 = "2026-05-07"
_DEVICES = {
    "A100": Device("cuda", "A100", (8, 0), 108),
    "H100": Device("cuda", "H100", (9, 0), 132),
    "GB200": Device("cuda", "GB200", (10, 0), 148),
}
#: Before its NGC container of April 2026, PyTorch had the small cuBLAS workspace on Blackwell.
_B200 = Device("cuda", "B200", (10, 0), 148, torch=(2, 10))


@dataclass(frozen=True)
class Result:
    """Bytes published and predicted."""

    id: str
    figure: str
    published: float
    predicted: float
    mixture: bool = False
    #: The best published simulator's error, in percent.
    simulator: float | None = None

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1


def ci_results() -> Iterator[Result]:
    """Steady and peak of every row of high confidence that the formulas cover."""
    for line in CI.read_text().splitlines():
        row = json.loads(line)
        if row["confidence"] != "high" or not_modelled(row):
            continue
        memory = _memory(row)
        config = row["config"]
        mixture = bool(config.get("num-experts") or config.get("multi-latent-attention"))
        yield Result(
            row["id"].removeprefix("mcore-golden/"), "steady", row["steady_allocated_bytes"], memory.allocated, mixture
        )
        yield Result(row["id"].removeprefix("mcore-golden/"), "peak", row["value"], memory.peak, mixture)


def left_out() -> dict[str, int]:
    """Rows of high confidence by the reason for which they are not modelled."""
    reasons = [
        not_modelled(json.loads(line))
        for line in CI.read_text().splitlines()
        if json.loads(line)["confidence"] == "high"
    ]
    return dict(Counter(reason for reason in reasons if reason))


def not_modelled(row: dict[str, Any]) -> str:
    """The argument of a row that is not modelled, or the kind of model; empty if all is."""
    asked = [name for name in NOT_MODELLED if row["config"].get(name)]
    kind = row["id"].split("/")[1]
    dated = DATES.get(row["id"].removeprefix("mcore-golden/"), "")
    if "2026-05-22" <= dated < "2026-07-07" and row["config"].get("tensor-model-parallel-size", 1) == 1:
        return "batches of a whole step kept by mistake (5e4fc931ba to bf32f4415e)"
    return (
        asked[0] if asked else kind if kind not in ("gpt", "moe") else "distillation" if "modelopt" in row["id"] else ""
    )


def _memory(row: dict[str, Any]) -> Any:
    config, world = row["config"], row["parallelism"]["world"]
    get = config.get
    tp, pp, cp = (
        get("tensor-model-parallel-size", 1),
        get("pipeline-model-parallel-size", 1),
        get("context-parallel-size", 1),
    )
    dp = world // (tp * pp * cp)
    model = _architecture(config, row["id"])
    device = next((d for name, d in _DEVICES.items() if name in (row["hardware"] or "")), _DEVICES["A100"])
    device = replace(
        device,
        torch=(2, 12) if DATES.get(row["id"].removeprefix("mcore-golden/"), "2026-08") >= _TORCH_2_12 else (2, 11),
    )
    engine = get("transformer-impl", "transformer_engine") == "transformer_engine"
    chunks = _chunks(config, model, pp)
    run = Megatron(
        tp=tp, pp=pp, dp=dp, cp=cp, ep=get("expert-model-parallel-size", 1), etp=get("expert-tensor-parallel-size"), chunks=len(chunks),
        sequence_parallel=bool(get("sequence-parallel")), use_distributed_optimizer=bool(get("use-distributed-optimizer")),
        num_distributed_optimizer_instances=get("num-distributed-optimizer-instances") or 1, fp16=bool(get("fp16")),
        micro_batch_size=config["micro-batch-size"], seq_length=config["seq-length"],
        microbatches=max(config["global-batch-size"] // (config["micro-batch-size"] * dp), 1), attention_backend=_backend(row, device, engine),  # type: ignore[arg-type]
        transformer_engine=engine, hidden_dropout=get("hidden-dropout", 0.1), attention_dropout=get("attention-dropout", 0.1),
        cross_entropy_loss_fusion=(get("cross-entropy-fusion-impl", "native") if get("cross-entropy-loss-fusion") else None),
        gradient_accumulation_fusion=not get("no-gradient-accumulation-fusion"), moe_grouped_gemm=bool(get("moe-grouped-gemm")),
        recompute_granularity=get("recompute-granularity"), recompute_method=get("recompute-method"), recompute_num_layers=get("recompute-num-layers") or 1,
        make_vocab_size_divisible_by=get("make-vocab-size-divisible-by", 128), attention_mask=not get("no-create-attention-mask-in-dataloader"),
        yarn=bool(get("rotary-scaling-factor")),
    )  # fmt: skip
    return memory_of(model, run, pp - 1, device, "CUBLAS_WORKSPACE_CONFIG" in row["env_vars"], chunks)


def _architecture(config: dict[str, Any], name: str) -> Architecture:
    """Of arguments; what they leave out is Megatron's default (training/arguments.py)."""
    get = config.get
    hidden, heads, gated, layers = (
        config["hidden-size"],
        config["num-attention-heads"],
        bool(get("swiglu")),
        config["num-layers"],
    )
    ffn = get("ffn-hidden-size") or (int((4 * hidden * 2 / 3) / 64) * 64 if gated else 4 * hidden)
    words = get("vocab-size") or 50257
    if get("tokenizer-type") == "NullTokenizer" and get("vocab-size") and "7b" not in name:
        words += 1
    rotary = get("position-embedding-type") in ("rope", "yarn", "none") or get("use-rotary-position-embeddings")
    latent = None
    if get("multi-latent-attention"):
        latent = Latent(
            get("q-lora-rank"),
            get("kv-lora-rank", 512),
            get("qk-head-dim", 128),
            get("qk-pos-emb-head-dim", 64),
            get("v-head-dim", 128),
        )
    experts = None
    if get("num-experts"):
        every = get("moe-layer-freq", 1)
        every = ast.literal_eval(_product(every)) if isinstance(every, str) else every
        dense = {i for i in range(layers) if not (every[i] if isinstance(every, list) else i % every == 0)}
        experts = Experts(config["num-experts"], get("moe-router-topk", 2), get("moe-ffn-hidden-size") or ffn, get("moe-shared-expert-intermediate-size") or 0, frozenset(dense))  # fmt: skip
    return Architecture(
        hidden, layers, heads, get("num-query-groups") if get("group-query-attention") else heads, get("kv-channels") or hidden // heads, ffn, words, gated,
        get("normalization") == "RMSNorm", not get("disable-bias-linear"), not get("untie-embeddings-and-output-weights"),
        0 if rotary else config["max-position-embeddings"], bool(get("qk-layernorm")), latent, experts, get("mtp-num-layers") or 0,
    )  # fmt: skip


def _product(text: str) -> str:
    """``([0]*1+[1]*15)`` as a list."""
    parts = re.findall(r"\[(\d)\]\s*\*\s*(\d+)", text)
    return str([int(value) for value, count in parts for _ in range(int(count))]) if parts else text


def _backend(row: dict[str, Any], device: Device, engine: bool) -> str:
    """What Transformer Engine takes (attention/dot_product_attention/utils.py, get_attention_backend): flash before Hopper, cuDNN after; on
    Blackwell flash again where results must repeat, which cuDNN's backward does not offer."""
    asked = row["config"].get("attention-backend")
    if not engine:
        return "local"
    if asked in ("unfused", "flash", "fused"):
        return str(asked)
    exact = str(row["env_vars"].get("NVTE_ALLOW_NONDETERMINISTIC_ALGO")) == "0"
    return "flash" if device.capability < (9, 0) or (device.capability[0] == 10 and exact) else "fused"


def _chunks(config: dict[str, Any], model: Architecture, pp: int) -> tuple[Chunk, ...]:
    """The last rank's layers, as the arguments deal them out."""
    get, layers = config.get, model.layers
    layout = get("pipeline-model-parallel-layout")
    if layout:
        return _laid_out(str(layout), pp)
    virtual = get("num-layers-per-virtual-pipeline-stage")
    embedding, loss = (
        bool(get("account-for-embedding-in-pipeline-split")),
        bool(get("account-for-loss-in-pipeline-split")),
    )
    first, last = get("decoder-first-pipeline-num-layers"), get("decoder-last-pipeline-num-layers")
    if first is not None or last is not None:
        count = last if last is not None else (layers - first) // (pp - 1)
        return (Chunk(tuple(range(layers - count, layers)), pp == 1, True, model.predictors),)
    a_rank = (layers + embedding + loss) // pp
    count = 1 if pp == 1 else get("num-virtual-stages-per-pipeline-rank") or (a_rank // virtual if virtual else 1)
    each = a_rank // count
    found = []
    for number in range(count):
        start = number * pp * each + (pp - 1) * each - embedding
        ends = number == count - 1
        size = each - (loss and ends) - (embedding and pp == 1)
        start = 0 if pp == 1 else start
        found.append(
            Chunk(tuple(range(start, start + size)), pp == 1 and number == 0, ends, model.predictors if ends else 0)
        )
    return tuple(found)


def _laid_out(layout: str, pp: int) -> tuple[Chunk, ...]:
    """``Et*3|(tt|)*29,m|L``: embedding, layers, predictors and loss of each part (core/transformer/pipeline_parallel_layer_layout.py)."""
    text = layout.replace("\\", "")
    while True:
        wider = re.sub(r"\(([^()]*)\)\*(\d+)", lambda m: m.group(1) * int(m.group(2)), text)
        wider = re.sub(r"([a-zA-Z])\*(\d+)", lambda m: m.group(1) * int(m.group(2)), wider)
        if wider == text:
            break
        text = wider
    found, start = [], 0
    for part in text.split("|"):
        count = part.count("t")
        found.append(Chunk(tuple(range(start, start + count)), "E" in part, "L" in part, part.count("m")))
        start += count
    return tuple(chunk for number, chunk in enumerate(found) if number % pp == pp - 1)


def b200_results() -> Iterator[Result]:
    """The fullest rank of every run."""
    for line in B200.read_text().splitlines():
        row = json.loads(line)
        config = row["model_config"]
        mixture = config["model_type"] == "moe"
        model, run = _of_simumax(row, config, mixture)
        predicted = max(memory_of(model, run, stage, _B200).peak for stage in range(row["pp"]))
        published = max(rank["max_allocated_mib"] for rank in row["per_rank"].values()) * 2**20
        yield Result(
            row["id"].removeprefix("simumax/b200/"), "peak", published, predicted, mixture, row["simumax_error_pct"]
        )


def _of_simumax(row: dict[str, Any], config: dict[str, Any], mixture: bool) -> tuple[Architecture, Megatron]:
    latent = experts = None
    if mixture:
        latent = Latent(
            config["q_lora_rank"],
            config["kv_lora_rank"],
            config["qk_head_dim"],
            config["qk_pos_emb_head_dim"],
            config["v_head_dim"],
        )
        experts = Experts(
            config["expert_num"], config["topk"], config["moe_ffn_hidden_size"], config.get("moe_shared_expert_intermediate_size") or 0,
            frozenset(range(config.get("dense_layers", 1))),
        )  # fmt: skip
    model = Architecture(
        config["hidden_size"], config["layer_num"], config["head_num"], config.get("kv_head_num") or config["head_num"], config.get("head_size") or 0,
        config["intermediate_size"], config["vocab_size"] + 1, qk_norm=mixture, latent=latent, experts=experts,
    )  # fmt: skip
    run = Megatron(
        tp=row["tp"], pp=row["pp"], dp=row["dp"], cp=row["cp"], ep=row["ep"], etp=row["etp"], sequence_parallel=row["sequence_parallel"],
        micro_batch_size=row["micro_batch_size"], seq_length=row["seq_len"], microbatches=row["micro_batch_count"], attention_backend="flash",
        cross_entropy_loss_fusion="te", yarn=mixture,
    )  # fmt: skip
    return model, run
