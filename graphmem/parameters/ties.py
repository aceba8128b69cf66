"""Tied weights: tensors that are one storage in memory. Counted once, and shown.

A live module tells by identity. A checkpoint usually stores the shared tensor once and says nothing, so a missing output head is
what reveals the tie; where both are stored and the config ties them, the second copy is bytes on disk and no more parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphmem.checkpoint import ModelSpec
from graphmem.config import text_config
from graphmem.parameters.roles import Component
from graphmem.parameters.stored import StoredTensor

_GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True)
class Tie:
    """``names`` share the storage of ``owner``. ``copies`` are those the checkpoint stores all the same."""

    owner: str
    names: tuple[str, ...]
    parameters: int
    stored_again: bool = False


def find_ties(spec: ModelSpec, tensors: Sequence[StoredTensor], roles: Mapping[str, Component]) -> tuple[Tie, ...]:
    """The ties of a model: those its module told, else embedding and head where the files and the config say so."""
    if spec.ties:
        counts = {tensor.spec.name: tensor.parameters for tensor in tensors}
        return tuple(Tie(owner, tuple(names), counts.get(owner, 0)) for owner, *names in spec.ties if counts.get(owner))
    tables = [
        t
        for t in tensors
        if roles[t.spec.name] == "embedding" and len(t.spec.shape) == 2 and t.spec.name.endswith("weight")
    ]
    table = max(tables, key=lambda t: t.parameters, default=None)
    if table is None:
        return ()
    twins = [
        t
        for t in tensors
        if t is not table
        and t.spec.shape == table.spec.shape
        and roles[t.spec.name] in ("head", "embedding")
        and _is_tied(spec, t)
    ]
    if twins:
        return (Tie(table.spec.name, tuple(t.spec.name for t in twins), table.parameters, stored_again=True),)
    heads = [t for t in tensors if roles[t.spec.name] == "head" and len(t.spec.shape) == 2]
    if not heads and _writes_tokens(spec):
        return (Tie(table.spec.name, ("the output head",), table.parameters),)
    return ()


def without_copies(tensors: Sequence[StoredTensor], ties: Sequence[Tie]) -> tuple[StoredTensor, ...]:
    """Tied copies keep their bytes on disk and lose their parameters."""
    copies = {name for tie in ties if tie.stored_again for name in tie.names}
    return tuple(replace(t, parameters=0) if t.spec.name in copies else t for t in tensors)


def _is_tied(spec: ModelSpec, twin: StoredTensor) -> bool:
    config = text_config(spec.config)
    said = spec.config.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if twin.spec.name.endswith(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")):
        return said is not False or bool(spec.config.get("is_encoder_decoder"))
    return said is True


def _writes_tokens(spec: ModelSpec) -> bool:
    architectures = spec.config.get("architectures") or text_config(spec.config).get("architectures") or ()
    return any(str(name).endswith(_GENERATIVE) for name in architectures) or "gguf" in spec.config
