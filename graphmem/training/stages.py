"""The stages of a step: model, forward, backward, optimizer step; the peak of each, and what is alive there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graphmem.timeline.events import Event, Kind, Phase, rounded

if TYPE_CHECKING:
    from graphmem.tracing.trace import Trace

Stage = Literal["model", "forward", "backward", "optimizer step"]
STAGES: tuple[Stage, ...] = ("model", "forward", "backward", "optimizer step")
_STAGE_OF: dict[Phase, Stage] = {
    "forward": "forward", "loss": "forward", "backward": "backward", "recompute": "backward", "optimizer": "optimizer step",
}  # fmt: skip


@dataclass(frozen=True)
class StagePeak:
    """The most that was allocated in a stage of a step (``step`` from 0), by kind; in bytes."""

    step: int
    stage: Stage
    peak: int
    kinds: dict[Kind, int]


def stages(trace: Trace) -> list[StagePeak]:
    """Of every step in order. ``model`` is what is there before it: at first parameters and buffers, later states too."""
    sizes = [rounded(block.nbytes, trace.device.rounding) for block in trace.blocks]
    events: dict[int | None, list[Event]] = {}
    for event in trace.events:
        events.setdefault(event.op, []).append(event)
    now: dict[Kind, int] = {}
    found: dict[tuple[int, Stage], StagePeak] = {}
    total = 0

    def happen(event: Event) -> None:
        nonlocal total
        block = trace.blocks[event.block]
        change = sizes[event.block] if event.alloc else -sizes[event.block]
        total += change
        now[block.kind] = now.get(block.kind, 0) + change

    def note(step: int, stage: Stage) -> None:
        if (step, stage) not in found or total > found[step, stage].peak:
            found[step, stage] = StagePeak(step, stage, total, dict(now))

    for event in events.get(None, ()):
        happen(event)
    note(0, "model")
    for index, op in enumerate(trace.ops):
        if (op.step, "model") not in found:
            note(op.step, "model")
        note(op.step, _STAGE_OF[op.phase])
        for event in events.get(index, ()):
            happen(event)
            note(op.step, _STAGE_OF[op.phase])
    return sorted(found.values(), key=lambda peak: (peak.step, STAGES.index(peak.stage)))


def kept_for_backward(trace: Trace) -> int:
    """Bytes of activations when forward is over, the most of any pass: what backward needs, whoever keeps it."""
    sizes = [rounded(block.nbytes, trace.device.rounding) for block in trace.blocks]
    kept = most = 0
    phase: str | None = None
    for event in trace.events:
        op = trace.ops[event.op] if event.op is not None else None
        if op is not None and op.phase == "backward" and phase in ("forward", "loss"):
            most = max(most, kept)
        phase = op.phase if op is not None else phase
        block = trace.blocks[event.block]
        if block.kind == "activation" and block.op is not None:
            kept += sizes[event.block] if event.alloc else -sizes[event.block]
    return most


def offloaded(trace: Trace) -> int:
    """Bytes of activations that lie in host memory when forward is over: those that backward brings back, of one pass."""
    passes: list[int] = [0]
    phase: str | None = None
    for op in trace.ops:
        if op.phase in ("forward", "loss") and phase not in ("forward", "loss"):
            passes.append(0)
        phase = op.phase
        if op.phase in ("backward", "recompute") and op.name.startswith("aten.empty_strided"):
            for index in op.outputs:
                block = trace.values[index].block
                passes[-1] += trace.blocks[block].nbytes if block is not None else 0
    return max(passes)
