"""Targets for a model's own loss, where they follow from the inputs and the config."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.accuracy.network import integers, normal
from tests.accuracy.tiny_inputs import BATCH, CHOICES, DECODED, TOKENS, Case, tokens


def _same_as_ids(case: Case, found: dict[str, Any]) -> dict[str, Tensor]:
    return {"labels": found["input_ids"].clone()}


def _decoded(case: Case, found: dict[str, Any]) -> dict[str, Tensor]:
    return {"labels": tokens(case, BATCH, DECODED, seed=2)}


def _generated(case: Case, found: dict[str, Any]) -> dict[str, Tensor]:
    return _decoded(case, found) if case.config.is_encoder_decoder else _same_as_ids(case, found)


def _class_each(case: Case, found: dict[str, Any]) -> dict[str, Tensor]:
    return {"labels": integers(max(1, case.config.num_labels), BATCH)}


def _class_each_token(case: Case, found: dict[str, Any]) -> dict[str, Tensor]:
    return {"labels": integers(max(1, case.config.num_labels), *found["input_ids"].shape)}


def _span(case: Case, found: dict[str, Any]) -> dict[str, Tensor]:
    return {"start_positions": torch.ones(BATCH, dtype=torch.long), "end_positions": torch.full((BATCH,), 3)}


def _class_each_pixel(case: Case, found: dict[str, Any]) -> dict[str, Tensor]:
    height, width = found["pixel_values"].shape[-2:]
    return {"labels": integers(max(1, case.config.num_labels), BATCH, height, width)}


def _speech(case: Case, found: dict[str, Any]) -> dict[str, Tensor]:
    """Two frames a token, with a pitch and an energy each, for FastSpeech 2."""
    return {
        "spectrogram_labels": normal(BATCH, 2 * TOKENS, 80),
        "duration_labels": torch.full((BATCH, TOKENS), 2),
        "pitch_labels": normal(BATCH, TOKENS, 1),
        "energy_labels": normal(BATCH, TOKENS, 1, seed=1),
    }


Labels = Callable[[Case, dict[str, Any]], dict[str, Any]]
_BY_CLASS: tuple[tuple[str, Labels], ...] = (
    (r".*For(CausalLM|MaskedLM)|.*LMHeadModel", _same_as_ids),
    (r".*ForConditionalGeneration", _generated),
    (r".*For(Sequence|Image|Video|Audio)Classification|.*ForNextSentencePrediction|.*ForXVector", _class_each),
    (r".*ForMultipleChoice", lambda case, found: {"labels": integers(CHOICES, BATCH)}),
    (r".*ForTokenClassification", _class_each_token),
    (r".*ForSemanticSegmentation", _class_each_pixel),
    (r".*ForQuestionAnswering(Simple)?", _span),
    (r".*ForCTC", _decoded),
    (r"FastSpeech2Conformer.*", _speech),
    (r".*", lambda case, found: {"return_loss": True}),
)


def labels_for(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """The targets that `forward` takes by name; none where they are not easy."""
    name = type(case.module).__name__
    make = next(make for pattern, make in _BY_CLASS if re.fullmatch(pattern, name))
    try:
        made = make(case, found)
    except KeyError:  # Made from inputs that this class does not take.
        return {}
    return {name: value for name, value in made.items() if name in case.names and name not in found}
