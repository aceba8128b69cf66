"""A rank's memory: what it holds between steps, and the fullest moment of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graphmem.parallel.megatron import activations
from graphmem.parallel.megatron.architecture import Architecture
from graphmem.parallel.megatron.parameters import check
from graphmem.parallel.megatron.settings import Megatron
from graphmem.parallel.megatron.stages import Chunk, chunks_of, in_flight
from graphmem.parallel.megatron.states import Line, fp32_gradients, hidden_bytes, kept, stale, states
from graphmem.tracing.device import Device


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one pipeline rank. ``steady``: between steps; ``moments``: what is there at each moment that may be the fullest."""

    stage: int
    steady: tuple[Line, ...]
    moments: dict[str, tuple[Line, ...]]

    @property
    def allocated(self) -> int:
        """Between steps: ``torch.cuda.memory_allocated``."""
        return sum(line.nbytes for line in self.steady)

    @property
    def fullest(self) -> str:
        """The moment of most memory."""
        return max(self.moments, key=lambda moment: sum(line.nbytes for line in self.moments[moment]))

    @property
    def peak(self) -> int:
        """``torch.cuda.max_memory_allocated``."""
        return sum(line.nbytes for line in self.moments[self.fullest])


def memory_of(
    model: Architecture,
    run: Megatron,
    stage: int,
    device: Device,
    exact: bool = False,
    chunks: Sequence[Chunk] | None = None,
) -> RankMemory:
    """The memory of the ranks of a pipeline stage.

    Args:
        exact: ``CUBLAS_WORKSPACE_CONFIG=:4096:8``, as in runs that must repeat bit by bit.
        chunks: the stage's layers, where they are not dealt out evenly.

    Raises:
        GraphmemError: the layout does not divide the model.
    """
    check(model, run)
    here = tuple(chunks or chunks_of(model.layers, run.pp, run.chunks, stage, model.predictors))
    base = (*states(model, run, here), *kept(model, run, here, device, exact))
    held = Line("activation", "each chunk's last input and its gradient", stale(model, run, here))
    copies = Line("gradient", "fp32 copies of fp16 gradients", fp32_gradients(model, run, here))
    steady = tuple(line for line in (*base, held, copies) if line.nbytes)
    filled = (
        *base,
        Line("activation", "batch", activations.batch(run)),
        Line("activation", "saved by layers", saved(model, run, here, stage)),
    )
    moments = {
        name: (*filled, *(line for line in lines if line.nbytes)) for name, lines in _moments(model, run, here, stage)
    }
    return RankMemory(stage, steady, {**moments, "optimizer step": steady})


def saved(model: Architecture, run: Megatron, chunks: Sequence[Chunk], stage: int) -> int:
    """What layers keep for the backward of every micro-batch in flight, before backward begins."""
    total = 0
    for chunk, count in zip(chunks, in_flight(run.pp, run.chunks, stage, run.microbatches), strict=True):
        each = _saved_by(model, run, chunk)
        if chunk.embedding and run.hidden_dropout:
            each += run.sharded_tokens * model.hidden  # the mask of the embedding's dropout
        total += count * each
    return total


def _saved_by(model: Architecture, run: Megatron, chunk: Chunk) -> int:
    """Of one micro-batch in a chunk's layers. Recomputed ones keep their input (training/arguments.py, --recompute-granularity)."""
    layers = [_layer_bytes(model, run, model.has_experts(number)) for number in chunk.layers]
    hidden = hidden_bytes(model, run)
    if run.recompute_granularity == "full":
        again = run.recompute_num_layers
        if run.recompute_method == "uniform":
            layers = [hidden] * -(-len(layers) // again)
        else:
            layers = [hidden] * min(again, len(layers)) + layers[again:]
    # Behind the last layer: enorm, hnorm and the product of both; its logits and softmax stay until its own backward.
    predictor = _layer_bytes(model, run, model.experts is not None) + 10 * hidden
    return sum(layers) + chunk.predictors * (predictor + 6 * activations.logits(model, run) // 2)


def _layer_bytes(model: Architecture, run: Megatron, experts: bool) -> int:
    return sum(nbytes for _, nbytes in activations.layer(model, run, experts))


def _moments(
    model: Architecture, run: Megatron, chunks: Sequence[Chunk], stage: int
) -> Iterator[tuple[str, tuple[Line, ...]]]:
    """What is there beside what layers saved, at the moments that can be the fullest of a step."""
    hidden, whole = hidden_bytes(model, run), 2 * run.tokens * model.hidden
    pipelined = run.pp > 1
    last = any(chunk.head for chunk in chunks)
    if last:
        norm = Line("activation", "the last norm's input and output", activations.final_norm(model, run))
        # schedules.py: a stage's loop holds what it got and gave for the micro-batch before.
        before = Line(
            "activation", "tensors of the micro-batch before", (3 if run.chunks > 1 else 2) * hidden if pipelined else 0
        )
        if run.cross_entropy_loss_fusion != "te":
            yield "loss", (norm, Line("activation", "logits and loss", activations.loss(model, run)), before)
        gathered = Line("communication", "gradient before it is scattered", hidden if run.sequence_parallel else 0)
        one = Line("activation", "tensors of the micro-batch before", hidden if pipelined else 0)
        yield "backward of the output layer", (
            norm, Line("activation", "gradient of logits", activations.logits(model, run)), Line("temporary", "gradient of the last norm's output", whole), gathered, one,
        )  # fmt: skip
    if run.recompute_granularity == "full":
        again = run.recompute_num_layers if run.recompute_method == "uniform" else 1
        experts = any(model.has_experts(number) for chunk in chunks for number in chunk.layers)
        layers = Line("activation", "layers computed again", again * _layer_bytes(model, run, experts))
        yield (
            "recomputation",
            (layers, Line("temporary", "gradients", 2 * hidden + 8 * run.tokens * model.ffn // run.tp)),
        )
    if not all(model.has_experts(number) for chunk in chunks for number in chunk.layers):
        gradients = 2 * run.tokens * model.ffn // run.tp * (2 if model.gated else 1)
        yield (
            "backward of an MLP",
            (Line("temporary", "gradients of its first product, and of its output", gradients + hidden),),
        )
    if model.experts is not None and any(model.has_experts(number) for chunk in chunks for number in chunk.layers):
        # moe_layer.py, custom_forward: its locals keep what was permuted, sent, computed and sorted while results are sent back.
        tokens = Line(
            "temporary",
            "tokens permuted, sent, computed, sorted",
            4 * 2 * activations.routed(model, run) * model.hidden,
        )
        held = Line(
            "activation", "tensors of the micro-batch before", ((2 if last else 1) * hidden) if pipelined else 0
        )
        yield "experts' results sent back", (tokens, Line("activation", "residual and output", 2 * whole), held)
