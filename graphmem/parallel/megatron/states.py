"""What a rank holds between steps: parameters, gradients, optimizer states, and what libraries and Megatron keep."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graphmem.checkpoint import Basis
from graphmem.parallel.megatron.architecture import Architecture
from graphmem.parallel.megatron.parameters import Weight, weights
from graphmem.parallel.megatron.settings import Megatron
from graphmem.parallel.megatron.stages import Chunk
from graphmem.timeline.events import CUDA_ROUNDING, Kind
from graphmem.tracing.device import Device
from graphmem.tracing.rules.cuda_libraries import cublas_workspace
from graphmem.units import MIB, round_up

#: Elements that a parameter begins at a multiple of in its buffer, and a bucket ends at (core/optimizer/param_layout.py).
_START, _END = 64, 128
#: ``CUBLAS_WORKSPACE_CONFIG=:4096:8``, in KiB times a count.
_CUBLAS_TO_REPEAT = 4096 * 1024 * 8
#: Transformer Engine's (transformer_engine/pytorch/cpp_extensions/gemm.py, get_cublas_workspace_size_bytes), and its streams of grouped products.
_TE_WORKSPACE, _TE_WORKSPACE_HOPPER, _TE_STREAMS = 4 * MIB, 32 * MIB + 1024, 4


@dataclass(frozen=True)
class Line:
    """One thing a rank holds. Bytes."""

    kind: Kind
    what: str
    nbytes: int
    basis: Basis = "formula"


def states(model: Architecture, run: Megatron, chunks: Sequence[Chunk]) -> Iterator[Line]:
    """Parameters, gradients and optimizer states.

    With the distributed optimizer 2 + 4 bytes a parameter (bf16, fp32 main gradients), and 12 over the data-parallel ranks; without, 18.
    """
    totals = {"parameter": 0, "gradient": 0, "optimizer": 0}
    for chunk in chunks:
        for here, sharers in _shared_out(model, run, chunk):
            held = _distributed(here, sharers, run.fp16) if run.use_distributed_optimizer else _whole(here, run.fp16)
            for kind, nbytes in held:
                totals[kind] += nbytes
    yield Line("parameter", "16-bit parameters", totals["parameter"])
    yield Line("gradient", "main gradients", totals["gradient"])
    yield Line("optimizer", "fp32 parameters and Adam's moments", totals["optimizer"])


def _shared_out(model: Architecture, run: Megatron, chunk: Chunk) -> Iterator[tuple[list[Weight], int]]:
    """Dense weights, then experts, and the ranks that their optimizer states are spread over."""
    found = list(weights(model, run, chunk))
    for expert, ranks in ((False, run.dp * run.cp), (True, run.expert_dp)):
        sharers = max(ranks // run.num_distributed_optimizer_instances, 1) if run.use_distributed_optimizer else 1
        yield [weight for weight in found if weight.expert == expert], sharers


def _distributed(found: Sequence[Weight], ranks: int, fp16: bool) -> Iterator[tuple[str, int]]:
    if not found:
        return
    padded = round_up(sum(weight.count * round_up(weight.each, _START) for weight in found), math.lcm(ranks, _END))
    yield "parameter", 2 * padded
    yield "gradient", (2 if fp16 else 4) * padded
    yield "optimizer", 12 * sum(weight.numel for weight in found) // ranks


def _whole(found: Sequence[Weight], fp16: bool) -> Iterator[tuple[str, int]]:
    yield "parameter", sum(weight.count * round_up(2 * weight.each, CUDA_ROUNDING) for weight in found)
    # fp16 gradients are reduced as they are (training/arguments.py: only bf16 accumulates in fp32).
    yield "gradient", (2 if fp16 else 4) * sum(weight.numel for weight in found)
    yield "optimizer", 3 * sum(weight.count * round_up(4 * weight.each, CUDA_ROUNDING) for weight in found)


def fp32_gradients(model: Architecture, run: Megatron, chunks: Sequence[Chunk]) -> int:
    """Copies of fp16 gradients for fp32 parameters, made in the step and kept until gradients are zeroed (core/optimizer/optimizer.py);
    of a rank's own shard with the distributed optimizer (core/optimizer/distrib_optimizer.py)."""
    if not run.fp16:
        return 0
    return sum(
        4 * sum(weight.numel for weight in here) // sharers
        for chunk in chunks
        for here, sharers in _shared_out(model, run, chunk)
    )


def kept(
    model: Architecture, run: Megatron, chunks: Sequence[Chunk], device: Device, exact: bool = False
) -> Iterator[Line]:
    """Workspaces and buffers that stay once they are made. ``exact``: ``CUBLAS_WORKSPACE_CONFIG=:4096:8``, for runs that repeat exactly."""
    here = {weight for chunk in chunks for weight in weights(model, run, chunk)}
    last = any(chunk.head for chunk in chunks)
    hopper = device.capability >= (9, 0)
    # TE's products do not go through PyTorch; what does is the head, and a router.
    if (
        last
        or not run.transformer_engine
        or any(model.has_experts(number) for chunk in chunks for number in chunk.layers)
    ):
        each = _CUBLAS_TO_REPEAT if exact else cublas_workspace(device)
        yield Line(
            "workspace",
            "cuBLAS, of forward's and backward's thread",
            2 * each,
            "calibrated",
        )
    if run.transformer_engine or model.experts is not None:
        each = _TE_WORKSPACE_HOPPER if hopper else _TE_WORKSPACE
        yield Line("workspace", "Transformer Engine's cuBLAS", each, "calibrated")
        if run.transformer_engine and model.experts is not None and run.moe_grouped_gemm:
            yield Line("workspace", "Transformer Engine's grouped products", _TE_STREAMS * each, "calibrated")
    if run.gradient_accumulation_fusion and run.transformer_engine:
        # transformer_engine/pytorch/module/base.py, get_dummy_wgrad: autograd is handed a gradient that nobody reads.
        shapes = {weight.shape for weight in here if weight.matrix}
        yield Line(
            "gradient",
            "stand-ins of gradients that are accumulated as they are made, one a shape",
            2 * sum(map(math.prod, shapes)),
        )
    buffer = _memory_buffer(model, run, last)
    if buffer:
        yield Line("communication", "Megatron's memory buffer", buffer)
    tables = _position_tables(model, run, chunks)
    if tables:
        yield Line("buffer", "position tables", tables)


def hidden_bytes(model: Architecture, run: Megatron) -> int:
    """Of a micro-batch's hidden states between layers, in 16 bit."""
    return 2 * run.sharded_tokens * model.hidden


def stale(model: Architecture, run: Megatron, chunks: Sequence[Chunk]) -> int:
    """The last input of each chunk and its gradient, held by the decoder until the next step (schedules.py, backward_step; set_input_tensor)."""
    received = sum(not chunk.embedding for chunk in chunks) if run.pp > 1 else 0
    return 2 * hidden_bytes(model, run) * received


def _memory_buffer(model: Architecture, run: Megatron, last: bool) -> int:
    """Grows and never shrinks (core/tensor_parallel, GlobalMemoryBuffer): what the head gathers, and the scores of Megatron's own attention."""
    gathered = 2 * run.tokens * model.hidden if run.sequence_parallel and last else 0
    scores = (
        0
        if run.transformer_engine or run.cp > 1
        else 2 * run.micro_batch_size * model.heads // run.tp * run.seq_length**2
    )
    return max(gathered, scores)


def _position_tables(model: Architecture, run: Megatron, chunks: Sequence[Chunk]) -> int:
    if model.latent is not None:
        layers = sum(len(chunk.layers) + chunk.predictors for chunk in chunks)
        return 3 * layers * run.seq_length * model.latent.rope * 4 if run.yarn else 0
    return 0 if model.positions else run.seq_length // run.cp * model.head_size * 4
