"""Which layers a pipeline rank has, and how many micro-batches it keeps for backward."""

from __future__ import annotations

from dataclasses import dataclass

from graphmem.errors import GraphmemError


@dataclass(frozen=True)
class Chunk:
    """A part of the model on a pipeline rank: its layers, and whether embedding and head are there too."""

    layers: tuple[int, ...]
    embedding: bool = False
    head: bool = False
    predictors: int = 0


def chunks_of(layers: int, stages: int, chunks: int, stage: int, predictors: int = 0) -> tuple[Chunk, ...]:
    """The chunks of a pipeline rank, in the order data goes through them (core/transformer/transformer_block.py, get_num_layers_to_build).

    Raises:
        GraphmemError: layers are not divided by stages and chunks.
    """
    parts = stages * chunks
    # ``--account-for-embedding-in-pipeline-split`` and ``-loss-``: both count as a layer, as Llama 3's 126 were dealt out.
    ends = 0 if layers % parts == 0 else 1
    each, rest = divmod(layers + 2 * ends, parts)
    if rest or layers < parts:
        fitting = [
            n for n in range(2, layers // chunks + 1) if not layers % (n * chunks) or not (layers + 2) % (n * chunks)
        ]
        raise GraphmemError(
            f"{layers} layers, or {layers + 2} with embedding and loss, are not divided by {stages} stages"
            + (f" × {chunks} chunks" if chunks > 1 else "")
            + f"; pp can be {', '.join(map(str, fitting)) or '1'}"
        )
    found = []
    for chunk in range(chunks):
        part = chunk * stages + stage
        last = part == parts - 1
        first = max(part * each - ends, 0)
        until = min((part + 1) * each - ends, layers)
        found.append(Chunk(tuple(range(first, until)), part == 0, last, predictors if last else 0))
    return tuple(found)


def in_flight(stages: int, chunks: int, stage: int, microbatches: int) -> tuple[int, ...]:
    """Micro-batches that each chunk of a rank keeps at most, when the newest forward is over.

    1F1B: a stage runs ahead of the last one by its distance to it (Narayanan et al. 2021, §2.2). Interleaved: 2 (p − r − 1) + (v − 1) p warm-up
    passes and one more (§2.2; core/pipeline_parallel/schedules.py, get_pp_rank_microbatches), in rounds of p through the chunks.
    """
    if chunks == 1:
        return (min(stages - stage, microbatches),)
    passes = min(2 * (stages - stage - 1) + (chunks - 1) * stages + 1, microbatches * chunks)
    counts = [0] * chunks
    for number in range(passes):
        counts[number // stages % chunks] += 1
    return tuple(counts)
