"""What vLLM's process takes beside weights, activations and cache. Calibrated from published logs, so always with its range."""

from __future__ import annotations

from dataclasses import dataclass

from graphmem.engines.shape import Shape
from graphmem.engines.vllm.profile import uses_v2_runner
from graphmem.engines.vllm.versions import Release, Scheduling
from graphmem.units import GIB, MIB


@dataclass(frozen=True)
class Calibrated:
    """A measured size: what is taken, the least and the most seen, and where."""

    nbytes: int
    low: int
    high: int
    source: str


def _gib(taken: float, low: float, high: float, source: str) -> Calibrated:
    return Calibrated(round(taken * GIB), round(low * GIB), round(high * GIB), source)


_PLANNER = "llm-d-incubation/llm-d-planner docs/empirical-vllm-memory-results.md"
_NOTEBOOKS = "unslothai/notebooks, vLLM's start-up lines"
#: By compute capability: the growth of driver-held memory from vLLM's first snapshot to the end of profiling, one GPU.
_ONE_GPU = {
    (7, 5): _gib(0.03, 0.03, 0.05, _NOTEBOOKS),
    (8, 0): _gib(0.09, 0.09, 0.26, f"{_NOTEBOOKS}; one log of an A100 80GB"),
    (8, 9): _gib(0.08, 0.08, 0.08, f"{_NOTEBOOKS}, RTX 4090; a log of a 48 GB card"),
    (9, 0): _gib(0.13, 0.13, 0.16, f"{_PLANNER}, six runs; vllm-project/vllm#12126"),
}
_OTHERS = _gib(0.08, 0.03, 0.26, "the median of all GPUs measured")
#: More with several GPUs: NCCL's buffers and those of the custom all-reduce. Nothing is published between two and eight.
_TWO_GPUS = _gib(0.42, 0.41, 0.42, f"{_PLANNER}: 0.55 on two H100 against 0.13 on one")
_MORE_GPUS = _gib(0.95, 0.42, 2.0, "between 0.42 on two H100 and 2.0 more on eight A100 (one log)")
_EIGHT_GPUS = _gib(2.0, 0.42, 2.0, "a log of eight A100 40GB: 2.1 GiB")
#: A captured size in V0, over seven published runs; a graph of one piece in V1.
_GRAPH_V0 = Calibrated(9 * MIB, 5 * MIB, 26 * MIB, "seven start-up lines of V0 with 23 to 43 sizes")
_GRAPH_V1 = Calibrated(
    50_000,
    50_000,
    200_000,
    f"{_PLANNER}: 0.10 GiB for 67 sizes of a model of 28 layers; 0.39 of one of 24 layers with experts",
)


def non_torch(capability: tuple[int, int], tp: int) -> Calibrated:
    """Memory outside PyTorch that grows while the model is loaded and profiled: libraries' kernels, NCCL."""
    one = _ONE_GPU.get(capability, _OTHERS)
    if tp == 1:
        return one
    more = _TWO_GPUS if tp == 2 else _EIGHT_GPUS if tp >= 8 else _MORE_GPUS
    return Calibrated(
        one.nbytes + more.nbytes, one.low + more.low, one.high + more.high, f"{one.source}; {more.source}"
    )


def with_context(found: Calibrated, context: tuple[int, int, int] | None) -> Calibrated:
    """The same with the CUDA context, for releases that count it; a context as measured holds the kernels that were loaded."""
    if context is None:
        return found
    low, median, high = context
    return Calibrated(
        max(median, found.nbytes),
        low,
        high + found.high,
        f"the CUDA context, which this release counts; {found.source}",
    )


def capture_sizes(release: Release, schedule: Scheduling) -> list[int]:
    """Batch sizes that CUDA graphs are captured for."""
    if not release.v1:
        most = next((size for size in range(8, 10_000, 8) if size >= schedule.max_num_seqs), 8)
        return [1, 2, 4, *range(8, (min(most, 256) if not release.since("0.6") else most) + 1, 8)]
    if not release.since("0.11"):
        return [size for size in (1, 2, 4, *range(8, 513, 8)) if size <= schedule.max_num_batched_tokens]
    most = min(2 * schedule.max_num_seqs, 512, schedule.max_num_batched_tokens)
    return [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if size <= most]


def graphs(release: Release, schedule: Scheduling, shape: Shape) -> Calibrated:
    """What capturing CUDA graphs takes from the GPU."""
    sizes = len(capture_sizes(release, schedule))
    each, count = (_GRAPH_V1, sizes * (shape.layers + 1)) if release.v1 else (_GRAPH_V0, sizes)
    return Calibrated(
        each.nbytes * count, each.low * count, each.high * count, f"{count:,} graphs × {each.nbytes:,} B; {each.source}"
    )


def graph_estimate(release: Release, schedule: Scheduling, shape: Shape) -> int:
    """What a release that plans for graphs takes out of the budget: at least 1 MiB for every size, piecewise and whole (profile_cudagraph_memory)."""
    if not release.graphs_in_budget or uses_v2_runner(shape, release):
        return 0
    sizes = capture_sizes(release, schedule)
    whole = [size for size in sizes if size <= schedule.max_num_seqs]
    return MIB * (max(len(sizes) - 1, 0) + max(len(whole) - 1, 0))
