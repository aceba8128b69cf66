"""Published rules beside a traced training run: what each says, what we find for the same thing, and how far apart they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphmem.published import rules
from graphmem.report import Column, Table


@dataclass(frozen=True)
class Found:
    """What was traced, in bytes, and the sizes that the rules ask for; None where a model has no such thing."""

    parameters: int
    weights: int
    #: Weights, gradients and optimizer states where all are there.
    states: int
    #: What autograd keeps when forward is over.
    saved: int
    peak: int
    #: torch's name of the dtype of most weights.
    dtype: str
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    tokens: int | None = None
    batch: int | None = None


_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


def comparison(found: Found) -> Table:
    """One row a rule; ``error`` is the rule's over ours, less one."""
    columns = (
        Column("rule", "Rule"), Column("about", "About"), Column("says", "It says", "bytes"), Column("ours", "Here", "bytes"),
        Column("error", "Off by", "share"),
    )  # fmt: skip
    rows, explain = [], []
    for name, about, says, ours, source in _rows(found):
        error = round(says / ours - 1, 4) if ours else None
        rows.append((name, about, says, ours, error))
        explain.append(f"{name}: {source}")
    notes = (
        "a rule's error is no fault where it is about another setting; an example of the third that divides by four twice (21 GB for 70 B "
        "parameters in fp8) contradicts its own formula, which gives 84 GB",
    )
    return Table("rules", "Rules of thumb", columns, tuple(rows), "formula", None, notes, tuple(explain))


def _rows(found: Found) -> Iterator[tuple[str, str, int, int, str]]:
    bits = _BITS.get(found.dtype, 16)
    yield (
        "16Ψ", "weights, gradients, states", rules.mixed_precision_adam(found.parameters), found.states,
        "ZeRO, Rajbhandari et al. 2020, section 3.1",
    )  # fmt: skip
    yield (
        "4 × inference", "peak of training", rules.training_as_inferences(found.parameters, bits // 8), found.peak,
        "\"GPU memory for AI models\": weights, gradients, two moments; no activations",
    )  # fmt: skip
    yield (
        "P × 4 B × 1.2 / (32/Q)", "weights loaded", rules.loaded(found.parameters, bits), found.weights,
        "\"GPU memory for AI models\": 20 % for everything else",
    )  # fmt: skip
    stages = rules.accelerate_stages(found.parameters * bits // 8, found.dtype)
    if stages is not None:
        yield "accelerate estimate-memory", "peak of training", stages.peak, found.peak, "Adam; activations left out"
    s, b, h, a, layers = found.tokens, found.batch, found.hidden, found.heads, found.layers
    if s and b and h and a and layers:
        yield (
            "L(34sbh + 5as²b)", "activations kept", rules.training_activations(s, b, h, a, layers), found.saved,
            "Korthikanti et al. 2022, section 4.1: 16 bit, GPT's layer, attention scores stored; embedding and loss left out",
        )  # fmt: skip
        yield (
            "24sbhL", "activations kept", rules.gpt2_activations(s, b, h, layers), found.saved,
            "ZeRO, section 3.2, footnote 3: twelve 16-bit numbers a token, layer and width, no attention scores",
        )  # fmt: skip
        yield (
            "32sbh + 4as²b", "activations kept", rules.inference_activations(s, b, h, a), found.saved,
            "\"Calculate model memory consumption\": one layer at a time, for inference",
        )  # fmt: skip
