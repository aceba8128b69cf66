"""What a layer saves for backward, tensor by tensor, and what the head and the embedding take."""

from __future__ import annotations

from collections.abc import Iterator

from graphmem.parallel.megatron.architecture import Architecture
from graphmem.parallel.megatron.parameters import key_columns, query_columns, vocabulary
from graphmem.parallel.megatron.settings import Megatron

Saved = Iterator[tuple[str, int]]


def layer(model: Architecture, run: Megatron, experts: bool) -> Saved:
    """(tensor, bytes) of a micro-batch, in the order they are made. 16-bit tensors of s × b × h: 2 bytes an element (Korthikanti et al. 2022, §4)."""
    hidden = 2 * run.sharded_tokens * model.hidden
    yield "attention's input", hidden
    yield from _norm(model, run, "input norm")
    yield from _attention(model, run)
    if run.hidden_dropout:
        yield "dropout mask after attention", run.sharded_tokens * model.hidden
    yield "MLP's input", hidden
    yield from _norm(model, run, "MLP's norm")
    if experts:
        yield from _mixture(model, run)
    else:
        yield from _mlp(model, run.tokens, model.ffn // run.tp, "MLP")
    if run.hidden_dropout:
        yield "dropout mask after the MLP", run.sharded_tokens * model.hidden


def final_norm(model: Architecture, run: Megatron) -> int:
    """Input and output of the last norm."""
    return 2 * run.sharded_tokens * model.hidden + sum(nbytes for _, nbytes in _norm(model, run, ""))


def logits(model: Architecture, run: Megatron) -> int:
    """In 16 bit, of a rank's part of the vocabulary."""
    return 2 * run.tokens * vocabulary(model, run)


def loss(model: Architecture, run: Megatron) -> int:
    """What logits and cross-entropy take together at their most.

    Logits in 16 bit, and their softmax in fp32, made in place (core/tensor_parallel/cross_entropy.py): 2 + 4 bytes; fused by torch.jit one
    more copy of 4; fused by Transformer Engine nothing but the logits, in which the gradient is written (TE 2.11).
    """
    copies = {None: 6, "native": 10, "te": 2}[run.cross_entropy_loss_fusion]
    return copies * run.tokens * vocabulary(model, run)


def routed(model: Architecture, run: Megatron) -> int:
    """Tokens that a rank's experts compute, where routing is balanced."""
    assert model.experts is not None
    tokens = run.sharded_tokens * model.experts.top_k
    return tokens * (run.expert_tp if run.sequence_parallel else 1)


def batch(run: Megatron) -> int:
    """Tokens, labels and positions in int64, the loss mask in fp32, and the attention mask if there is one (pretrain_gpt.py, get_batch)."""
    tokens = run.seq_length * run.micro_batch_size
    return 28 * tokens + (tokens * run.seq_length if run.attention_mask else 0)


def _norm(model: Architecture, run: Megatron, name: str) -> Saved:
    yield f"{name}'s output", 2 * run.sharded_tokens * model.hidden
    yield f"{name}'s statistics", (4 if model.rms_norm else 8) * run.sharded_tokens


def _attention(model: Architecture, run: Megatron) -> Saved:
    heads, tokens = model.heads // run.tp, run.tokens
    if model.latent is not None:
        yield from _latent(model, run)
        out = 2 * tokens * heads * model.latent.value
    else:
        queries, keys = query_columns(model, run), key_columns(model, run)
        yield "queries, keys, values", 2 * tokens * (queries + 2 * keys)
        if model.qk_norm:
            yield (
                "queries and keys before their norms",
                2 * tokens * (queries + keys) + 8 * tokens * (queries + keys) // model.head_size,
            )
        out = 2 * tokens * queries
    yield "attention's output", out
    if run.attention_backend in ("unfused", "local"):
        scores = run.micro_batch_size * heads * run.seq_length * run.seq_length // run.cp**2
        if run.recompute_granularity != "selective":
            yield (
                "softmax" + (", dropped and mask" if run.attention_dropout else ""),
                (2 + (3 if run.attention_dropout else 0)) * scores,
            )
        return
    yield "softmax statistics", 4 * tokens * heads
    # transformer_engine/pytorch/attention/backends.py: FlashAttention has the batch first; the copy back is free for one sequence.
    if (run.attention_backend == "flash" and run.micro_batch_size > 1) or run.cp > 1:
        yield "attention's output in another order", out


def _latent(model: Architecture, run: Megatron) -> Saved:
    latent, heads = model.latent, model.heads // run.tp
    assert latent is not None
    if latent.q_rank:
        yield (
            "compressed queries, before and after their norm",
            4 * run.sharded_tokens * latent.q_rank + 4 * run.sharded_tokens,
        )
    yield (
        "compressed keys and values, before and after their norm",
        2 * run.sharded_tokens * (2 * latent.kv_rank + latent.rope) + 4 * run.sharded_tokens,
    )
    yield "queries, keys, values", 2 * run.tokens * heads * (2 * (latent.nope + latent.rope) + latent.value)


def _mlp(model: Architecture, tokens: int, columns: int, name: str) -> Saved:
    yield f"{name}'s first product", 2 * tokens * columns * (2 if model.gated else 1)
    yield f"{name}'s activation", 2 * tokens * columns


def _mixture(model: Architecture, run: Megatron) -> Saved:
    mixture, tokens = model.experts, routed(model, run)
    assert mixture is not None
    yield "router's scores", run.sharded_tokens * mixture.count * (3 * 4 + 1)
    yield "permutation", 4 * run.sharded_tokens * (2 * mixture.count + 1)
    yield "tokens of the experts", 2 * tokens * model.hidden
    yield from _mlp(model, tokens, mixture.ffn // run.expert_tp, "experts")
    if mixture.shared:
        yield from _mlp(model, run.tokens, mixture.shared // run.tp, "shared expert")
