"""What a step costs a GPU under Megatron, for comparing layouts: floating-point operations, and bytes sent."""

from __future__ import annotations

from graphmem.parallel.megatron.architecture import Architecture
from graphmem.parallel.megatron.parameters import weights
from graphmem.parallel.megatron.settings import Megatron
from graphmem.parallel.megatron.stages import chunks_of
from graphmem.parallel.megatron.states import hidden_bytes


def operations(model: Architecture, run: Megatron) -> int:
    """Of a GPU in a step: 6 a parameter and token, of a token's experts only, and 12 s h a token for attention; full recomputation runs forward
    again, a third more (Narayanan et al. 2021, §5.1)."""
    tokens = run.tokens * run.cp * run.microbatches
    total = 0.0
    for stage in range(run.pp):
        here = chunks_of(model.layers, run.pp, run.chunks, stage, model.predictors)
        used = 0.0
        for chunk in here:
            for weight in weights(model, run, chunk):
                share = 1.0
                if (
                    weight.expert and model.experts
                ):  # ranks of tensor parallelism share out the tokens that experts split no further see
                    share = model.experts.top_k * run.ep / model.experts.count * run.expert_tp / run.tp
                used += weight.numel * share if len(weight.shape) > 1 and "embeddings" not in weight.name else 0
        attention = (
            12 * sum(len(chunk.layers) for chunk in here) * run.seq_length * model.heads * model.head_size / run.tp
        )
        total = max(total, (6 * used + attention) * tokens / run.cp)
    return round(total * (4 / 3 if run.recompute_granularity == "full" else 1))


def sent(model: Architecture, run: Megatron) -> int:
    """Bytes a GPU sends in a step: of tensor parallelism two all-reduces a layer in each direction (or the gathers and scatters that make them up;
    Korthikanti et al. 2022, §4.2), gradients and parameters of the distributed optimizer, hidden states between stages, tokens of experts."""
    chunks = chunks_of(model.layers, run.pp, run.chunks, 0, model.predictors)
    layers = sum(len(chunk.layers) for chunk in chunks)
    whole = 2 * run.tokens * model.hidden
    again = 2 if run.recompute_granularity == "full" else 1
    reduced = 2 * (run.tp - 1) / run.tp * whole * (2 * again + 2) * layers * run.microbatches
    held = [weight for chunk in chunks for weight in weights(model, run, chunk)]
    states = sum(
        (ranks - 1) / ranks * (4 + 2) * sum(weight.numel for weight in held if weight.expert == expert)
        for expert, ranks in ((False, run.dp * run.cp), (True, run.expert_dp))
    )
    handed = 2 * hidden_bytes(model, run) * run.microbatches * run.chunks if run.pp > 1 else 0
    routed = 0.0
    if model.experts is not None and run.ep > 1:
        mixed = sum(model.has_experts(number) for chunk in chunks for number in chunk.layers)
        routed = 4 * (run.ep - 1) / run.ep * hidden_bytes(model, run) * model.experts.top_k * mixed * run.microbatches
    return round(reduced + states + handed + routed)
