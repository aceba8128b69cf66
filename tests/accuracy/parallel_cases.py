"""Published memory of ranks of real multi-GPU runs: FSDP2 by torchtitan, DDP and FSDP by litgpt, FSDP with LoRA; on meta, in a fake world.

Settings come from the source's program at its commit, none from the figure but for those that `inferred` names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

from torch import nn

from graphmem.timeline.allocator.simulate import Simulation
from graphmem.tracing.device import Device
from graphmem.tracing.run import trace_module
from graphmem.tracing.trace import Trace
from graphmem.workload import Workload
from tests.accuracy import fsdp_qlora, litgpt, torchtitan, torchtitan_ranks
from tests.accuracy.torchtitan_qwen3 import QWEN3_32B, qwen3

_GIB = 2**30
_EXPANDABLE = "expandable_segments:True"


@dataclass(frozen=True)
class ParallelCase:
    """A figure, and how its run is traced. ``measured`` and the predictions are in bytes.

    ``allocated``: ``max_memory_allocated``; ``active``: the peak of ``active_bytes``, which is the same where no stream uses another's
    blocks; ``reserved``: ``max_memory_reserved``.
    """

    name: str
    source: str
    metric: Literal["allocated", "active", "reserved"]
    measured: int
    settings: str
    trace: Callable[[], Trace]
    alloc_conf: str = ""
    #: Settings that the source does not say, chosen because the figure is theirs; empty if it says all.
    inferred: str = ""


@dataclass(frozen=True)
class ParallelRow:
    """Bytes predicted."""

    case: ParallelCase
    allocated: int
    reserved: int

    @property
    def predicted(self) -> int:
        return self.reserved if self.case.metric == "reserved" else self.allocated

    @property
    def error(self) -> float:
        return self.predicted / self.case.measured - 1


def measure(case: ParallelCase) -> ParallelRow:
    """Trace a case's run and serve its events."""
    simulation = _served(case.trace, case.alloc_conf)
    return ParallelRow(case, simulation.peak_allocated, simulation.peak_reserved)


def rows() -> Iterator[ParallelRow]:
    """All of them."""
    for case in CASES:
        yield measure(case)


@lru_cache(maxsize=1)
def _traced(trace: Callable[[], Trace]) -> Trace:
    return trace()


def _served(trace: Callable[[], Trace], conf: str) -> Simulation:
    return _traced(trace).simulate(conf)


# -- torchtitan -----------------------------------------------------------------------------------------------------

_H100 = Device("cuda", "H100", (9, 0), 132)


@dataclass(frozen=True)
class _Titan:
    """A run of torchtitan's. Comparable, so that figures of one run are traced once."""

    model: Callable[[], torchtitan.Decoder]
    ranks: int
    batch: tuple[int, int]
    checkpointing: torchtitan.Checkpointing
    #: PyTorch's release, or the one its nightly became.
    torch: tuple[int, int]
    grouping: torchtitan_ranks.Grouping = torchtitan_ranks.last_kept
    fused: bool = False
    steps: int = 2
    chunked: bool = False
    #: Logits have a name in the loop until the next are there.
    kept: bool = False
    early_stop: bool = True
    tensor: int = 1

    def __call__(self) -> Trace:
        model = torchtitan.checkpointed(self.model(), self.checkpointing, self.early_stop)
        module: nn.Module = torchtitan.Training(model, self.chunked, self.kept).train()
        # Before PyTorch 2.5 the input of a reduce-scatter came from the stream that it runs in (pytorch/pytorch#129721).
        world = torchtitan_ranks.Fsdp2(self.ranks, self.grouping, self.torch < (2, 5), self.tensor)
        workload = Workload(
            step="train", loss=_first, optimizer=torchtitan_ranks.fused_adamw if self.fused else torchtitan_ranks.foreach_adamw,
            steps=self.steps, clip_norm=1.0, hold_output=self.kept,
        )  # fmt: skip
        device = replace(_H100, torch=self.torch)
        return trace_module(module, torchtitan.batch(*self.batch), {}, workload, device, "", world)


def _first(output: Any) -> Any:
    return output[0]


_TITAN = "pytorch/torchtitan@{}"


def _first_fsdp2(checkpointing: torchtitan.Checkpointing, figures: dict[str, float]) -> Iterator[ParallelCase]:
    """The table that introduced FSDP2 (#165, March 2024): percent of 95.0396 GiB; no setting of the allocator."""
    model = partial(torchtitan.llama, torchtitan.LLAMA2_7B, first=True)
    run = _Titan(model, 8, (8, 2048), checkpointing, (2, 3), kept=True)
    for metric, percent in figures.items():
        yield ParallelCase(
            f"pr165_fsdp2_{'ac' if checkpointing == 'full' else 'sac'}_{metric}", _TITAN.format("83c879f18 (#165)"), metric,  # type: ignore[arg-type]
            round(percent / 100 * 95.0396 * _GIB),
            f"Llama-2-7B, 8 ranks, 8 × 2,048 tokens each, {'all of' if checkpointing == 'full' else 'products and attention of'} blocks "
            f"{'recomputed' if checkpointing == 'full' else 'saved'}, foreach AdamW",
            run, inferred="" if checkpointing == "full" else "which selective checkpointing: by operator (its source has two)",
        )  # fmt: skip


_LLAMA3 = partial(torchtitan.llama, torchtitan.LLAMA3_8B)
_LLAMA3_NN = partial(torchtitan.llama, torchtitan.LLAMA3_8B, nn.RMSNorm)
_WORDS = "Llama-3.1-8B, {} ranks, {} × 8,192 tokens each, products and attention saved, {} AdamW{}"


def _titan(
    name: str, commit: str, gib: float, run: _Titan, words: str, conf: str = _EXPANDABLE, inferred: str = ""
) -> ParallelCase:
    """What the run printed as ``memory``: the most that was reserved."""
    return ParallelCase(name, _TITAN.format(commit), "reserved", round(gib * _GIB), words, run, conf, inferred)


def _policies() -> Iterator[ParallelCase]:
    """What is dropped after forward (#822): the first step, which begins without states, and those after it."""
    figures = {
        torchtitan_ranks.last_kept: ("default", 42.08, 49.59), torchtitan_ranks.always: ("always", 41.89, 49.41),
        torchtitan_ranks.never: ("never", 54.66, 62.18),
    }  # fmt: skip
    for grouping, (policy, first, later) in figures.items():
        for steps, gib in ((1, first), (2, later)):
            run = _Titan(_LLAMA3, 8, (1, 8192), "op", (2, 7), grouping, steps=steps)
            words = _WORDS.format(8, 1, "foreach", f"; {policy} dropped, {'first step' if steps == 1 else 'later'}")
            yield _titan(f"pr822_{policy}_{'step1' if steps == 1 else 'later'}", "5940ddeb5 (#822)", gib, run, words)


_LAUNCHED = "no expandable segments: the script of then sets them, but the table is of runs on 8 to 512 GPUs, started by something else"
_EXPANDED = "expandable segments: the script asks for them in vain, but several hosts are started by something else"
#: From 15 August 2025 the script set ``PYTORCH_ALLOC_CONF``, which PyTorch up to 2.9 ignores (pytorch/pytorch#183387).
_IGNORED = "no expandable segments: the script asks for them by a variable that PyTorch 2.9 does not read for CUDA (pytorch#183387)"
_TABLES = "9dec370, benchmarks/llama3_h100_202412_torchtitan.md@b5bcd76"
#: At d9bdfbb: cuDNN's attention, which the list of saved operators did not have yet.
_SEPARATE = _Titan(
    partial(_LLAMA3_NN, cudnn=True), 8, (1, 8192), "op", (2, 10), torchtitan_ranks.apart, fused=True, early_stop=False
)
_FUSED_STEP = _Titan(_LLAMA3, 8, (1, 8192), "op", (2, 7), fused=True)
_QWEN3 = _Titan(partial(qwen3, QWEN3_32B), 8, (1, 4096), "full", (2, 10), torchtitan_ranks.apart, fused=True, early_stop=False)  # fmt: skip
_QWEN3_WORDS = "Qwen3-32B, {} ranks, {} × 4,096 tokens each, blocks recomputed, fused AdamW"


# -- litgpt ---------------------------------------------------------------------------------------------------------

_A100 = Device("cuda", "A100", (8, 0), 108, torch=(2, 4))


def _litgpt(name: str, gigabytes: float, trace: Callable[[], Trace], how: str) -> ParallelCase:
    """A row of the table of extensions/thunder: ``max_memory_allocated`` in 10^9 bytes."""
    return ParallelCase(
        name, "Lightning-AI/litgpt:extensions/thunder/README.md@2685705", "allocated", round(gigabytes * 1e9),
        f"TinyLlama-1.1B, 4 × 2,048 tokens, pure bf16, fused AdamW, {how}", trace,
    )  # fmt: skip


# -- fsdp_qlora -----------------------------------------------------------------------------------------------------

_RTX_3090 = Device("cuda", "RTX 3090", (8, 6), 82, torch=(2, 2))


def _lora(tokens: int, gib: float) -> ParallelCase:
    """``max_memory_allocated`` of a rank."""
    return ParallelCase(
        f"7b_lora_{tokens}", "AnswerDotAI/fsdp_qlora:benchmarks_03_2024.md@05ed9f2", "allocated", round(gib * _GIB),
        f"Llama-2-7B, LoRA r=64 on q, k, v and the MLP, FSDP over 2, 1 × {tokens:,} tokens each, bf16, layers recomputed, AdamW",
        partial(fsdp_qlora.lora, 1, tokens, _RTX_3090),
    )  # fmt: skip


CASES: tuple[ParallelCase, ...] = (
    *_first_fsdp2("full", {"active": 23.92, "reserved": 32.64}),
    *_first_fsdp2("op", {"active": 52.13, "reserved": 62.51}),
    *_policies(),
    _titan("pr996_base", "e23bb707d (#996)", 49.58, _FUSED_STEP, _WORDS.format(8, 1, "fused", "")),
    _titan(
        "pr996_chunkedce", "e23bb707d (#996)", 42.26, replace(_FUSED_STEP, chunked=True), _WORDS.format(8, 1, "fused", "; loss in chunks")
    ),
    _titan(
        "pr985_after", "3b39d7ab0 (#985)", 49.66, replace(_FUSED_STEP, model=_LLAMA3_NN), _WORDS.format(8, 1, "fused", "; nn.RMSNorm")
    ),
    _titan(
        "t1_fsdp8", _TABLES, 82.4, _Titan(_LLAMA3, 8, (2, 8192), "op", (2, 6)), _WORDS.format(8, 2, "foreach", ""), "", _LAUNCHED
    ),
    _titan(
        "t3_fsdp128", _TABLES, 67.0, _Titan(_LLAMA3, 128, (2, 8192), "op", (2, 6)), _WORDS.format(128, 2, "foreach", ""), "", _LAUNCHED
    ),
    _titan("pr1881_fsdp2_8", "d9bdfbb20 (#1881)", 47.82, _SEPARATE, _WORDS.format(8, 1, "fused", ""), "", _IGNORED),
    _titan(
        "pr1881_fsdp2_64", "d9bdfbb20 (#1881)", 31.41, replace(_SEPARATE, ranks=64), _WORDS.format(64, 1, "fused", ""), _EXPANDABLE, _EXPANDED
    ),
    _titan(
        "pr1881_fsdp2_4x2", "d9bdfbb20 (#1881)", 35.33, replace(_SEPARATE, ranks=4, tensor=2),
        _WORDS.format("4 × 2", 1, "fused", "; tensor and sequence parallel in pairs"), "", _IGNORED,
    ),
    _titan("pr1690_qwen3_32b_f8_b1", "d66b72a6a (#1690)", 81.47, _QWEN3, _QWEN3_WORDS.format(8, 1), "", _IGNORED),
    _titan(
        "pr1690_qwen3_32b_f16_b4", "d66b72a6a (#1690)", 78.48, replace(_QWEN3, batch=(4, 4096), ranks=16), _QWEN3_WORDS.format(16, 4), _EXPANDABLE, _EXPANDED
    ),
    _litgpt("T117", 29.84, partial(litgpt.pretraining, 1, _A100), "gradients accumulated, one GPU"),
    _litgpt("T118", 32.04, partial(litgpt.pretraining, 8, _A100), "gradients accumulated, DDP over 8"),
    _litgpt("T119", 22.13, partial(litgpt.sharded, 8, _A100), "FSDP over 8"),
    _lora(512, 8.28),
    _lora(2048, 9.16),
)  # fmt: skip

#: Rows of these programs that are not held against, and why.
NOT_COVERED: dict[str, str] = {
    "pr1690_qwen3_32b_f8_b2": "the card is full: how much PyTorch gives back and takes again depends on what NCCL holds, which is not printed "
    "(89.33 GiB; 91.23 without an end of memory, 88.46 where that is too much)",
    "pytorch/pytorch#129721": "its norm and its allocator settings are not printed (77.29 GiB; 77.93 to 86.75 by them)",
    "pr165_fsdp1_*, 7b_lora_b6": "FSDP1 hands blocks to other streams: what stays active or reserved meanwhile is a matter of timing",
    "*_compile, *_f8, T021 to T028, pr165_c_*": "compiled blocks or fp8",
    "pr165_*_2d_active, pr1690_*t4*, pr1690_*t8*": "tensor parallelism by plans of their own, not written down here",
    "t2, t5, t6, pr1884, pr1610, pr1513, T029": "context or pipeline parallelism, routed experts",
}


if __name__ == "__main__":  # ``python -m tests.accuracy.parallel_cases [NAME …]``
    import sys
    import warnings

    warnings.simplefilter("ignore")
    chosen = [case for case in CASES if not sys.argv[1:] or any(word in case.name for word in sys.argv[1:])]
    for row in map(measure, chosen):
        print(
            f"{row.case.name:28} {row.case.metric:9} {row.case.measured / _GIB:8.3f} {row.predicted / _GIB:8.3f} {row.error:+.2%}"
            f"  (allocated {row.allocated / _GIB:.3f}, reserved {row.reserved / _GIB:.3f})",
            flush=True,
        )
