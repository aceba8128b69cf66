"""Tied weights: tensors that are one storage in memory. Counted once, and shown.

A live module tells by identity. A checkpoint usually stores the shared tensor once and says nothing, so a missing output head is
what reveals the tie; where both are stored and the config ties them, the second copy is bytes on disk and no more parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphmem.checkpoint import ModelSpec
from graphmem.config import architectures, text_config, writes_tokens
from graphmem.parameters.roles import Component
from graphmem.parameters.stored import StoredTensor

_TOKEN_TABLES = {
    "embed_tokens", "wte", "word_embeddings", "tok_embeddings", "token_embd", "embed_in", "shared", "word_embedding", "embedding",
    "embeddings", "tokens_embed",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tie:
    """``names`` share the storage of ``owner``. ``copies`` are those the checkpoint stores all the same."""

    owner: str
    names: tuple[str, ...]
    parameters: int
    stored_again: bool = False


def find_ties(spec: ModelSpec, tensors: Sequence[StoredTensor], roles: Mapping[str, Component]) -> tuple[Tie, ...]:
    """The ties of a model: those its module told, else embedding and head where the files and the config say so."""
    if spec.ties is not None:
        counts = {tensor.spec.name: tensor.parameters for tensor in tensors}
        return tuple(Tie(owner, tuple(names), counts.get(owner, 0)) for owner, *names in spec.ties if counts.get(owner))
    tables = [t for t in tensors if _is_token_table(t)]
    table = max(tables, key=lambda t: t.parameters, default=None)
    if table is None:
        return ()
    twins = [
        t
        for t in tensors
        if t is not table
        and t.spec.shape == table.spec.shape
        and (roles[t.spec.name] == "head" or t in tables)
        and _is_tied(spec, t)
    ]
    if twins:
        return (Tie(table.spec.name, tuple(t.spec.name for t in twins), table.parameters, stored_again=True),)
    heads = [t for t in tensors if roles[t.spec.name] == "head" and len(t.spec.shape) == 2]
    if not heads and _has_a_head(spec):
        return (Tie(table.spec.name, ("the output head",), table.parameters),)
    return ()


def without_copies(tensors: Sequence[StoredTensor], ties: Sequence[Tie]) -> tuple[StoredTensor, ...]:
    """Tied copies keep their bytes on disk and lose their parameters."""
    copies = {name for tie in ties if tie.stored_again for name in tie.names}
    return tuple(replace(t, parameters=0) if t.spec.name in copies else t for t in tensors)


def _is_token_table(tensor: StoredTensor) -> bool:
    """An embedding of tokens by its name; position and other tables of the same size are no twins of it."""
    leaf = tensor.spec.module.rpartition(".")[2]
    return leaf in _TOKEN_TABLES and len(tensor.spec.shape) == 2 and tensor.spec.name.endswith("weight")


def _is_tied(spec: ModelSpec, twin: StoredTensor) -> bool:
    config = text_config(spec.config)
    said = spec.config.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if twin.spec.name.endswith(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")):
        return said is not False or bool(spec.config.get("is_encoder_decoder"))
    return said is True


def _has_a_head(spec: ModelSpec) -> bool:
    text = text_config(spec.config)
    if spec.config.get("tie_word_embeddings", text.get("tie_word_embeddings")) is False:
        return False
    if "gguf" in spec.config:
        return not architectures(spec.config)  # named only for encoders, which write no tokens
    return writes_tokens(spec.config)
