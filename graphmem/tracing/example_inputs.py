"""Inputs for a model of transformers or diffusers: what its ``forward`` is called with in the task it was made for."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.errors import GraphmemError, UnsupportedError

#: Token ids repeat below this: real ids, whatever the vocabulary, that are no special token of most models.
_FIRST_ID, _IDS = 5, 64
#: Sequence length where the user gives none, unless the model takes less.
DEFAULT_SEQ_LEN = 1024


def example_inputs(model: Any, batch: int, seq_len: int | None, train: bool) -> dict[str, torch.Tensor]:
    """Keyword arguments for ``model(**inputs)``, on the CPU with real token ids; with labels where training has its own loss.

    Raises:
        UnsupportedError: the model's main input is of a kind graphmem does not make; pass inputs by hand.
    """
    config = model.config
    main = getattr(model, "main_input_name", "input_ids")
    maker = {"input_ids": _text, "pixel_values": _image, "input_features": _spectrogram, "input_values": _waveform}.get(
        main
    )
    if maker is None:
        raise UnsupportedError(
            f"{type(model).__name__} is called with {main!r}, which graphmem has no example of; trace a factory with --input"
        )
    return maker(model, config, batch, seq_len, train)


def sequence_length(config: Any, asked: int | None) -> int:
    """The sequence length asked for, or the default, within what the model can take.

    Raises:
        GraphmemError: more than the model has positions for.
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    most = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if not isinstance(most, int) or most < 1:
        most = None
    if asked is not None and most is not None and asked > most and _positions_are_a_table(text):
        raise GraphmemError(f"--seq-len {asked}: the model has positions for {most} tokens")
    return asked or min(DEFAULT_SEQ_LEN, most or DEFAULT_SEQ_LEN)


def _positions_are_a_table(config: Any) -> bool:
    """Learned positions end where their table ends; rotary ones go on."""
    return not (getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None))


def token_ids(batch: int, length: int, vocabulary: int) -> torch.Tensor:
    """Ids below the vocabulary size, int64 ``[batch, length]``."""
    below = max(min(vocabulary, _IDS), 1)
    ids = torch.arange(batch * length, device="cpu").reshape(batch, length) % below
    return torch.where(ids < min(_FIRST_ID, below - 1), below - 1, ids)


def packed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch's sequences behind each other in one row, each with positions from 0, which is how models tell where one begins.

    Raises:
        GraphmemError: the model reads something else than one text.
    """
    ids = inputs["input_ids"] if set(inputs) <= {"input_ids", "labels"} else None
    if ids is None:
        raise GraphmemError(f"packing: is for models that read one text; this one is called with {', '.join(inputs)}")
    count, length = ids.shape
    positions = torch.arange(length, device="cpu").repeat(count).reshape(1, -1)
    return {**{name: tensor.reshape(1, -1) for name, tensor in inputs.items()}, "position_ids": positions}


def _vocabulary(config: Any) -> int:
    return int(getattr(config.get_text_config(decoder=True), "vocab_size", None) or _IDS)


def _has_own_loss(model: Any) -> bool:
    name = type(model).__name__
    return name.endswith(
        ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "ForSpeechSeq2Seq", "WithLMHead")
    )


def _text(model: Any, config: Any, batch: int, seq_len: int | None, train: bool) -> dict[str, torch.Tensor]:
    ids = token_ids(batch, sequence_length(config, seq_len), _vocabulary(config))
    inputs = {"input_ids": ids}
    if hasattr(model, "logit_scale") and hasattr(
        config, "vision_config"
    ):  # two towers that are compared: CLIP and its kin
        inputs |= _image(model, config, batch, seq_len, train=False)
    if _has_own_loss(model) and train:
        inputs["labels"] = ids.clone()
    elif getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids.clone()
    return inputs


def _image(model: Any, config: Any, batch: int, seq_len: int | None, train: bool) -> dict[str, torch.Tensor]:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)[:2]
    channels = getattr(vision, "num_channels", None) or 3
    inputs = {"pixel_values": torch.zeros(batch, channels, height, width, dtype=_float_dtype(model))}
    if type(model).__name__.endswith("ForImageClassification") and train:
        inputs["labels"] = torch.zeros(batch, dtype=torch.int64)
    return inputs


def _spectrogram(model: Any, config: Any, batch: int, seq_len: int | None, train: bool) -> dict[str, torch.Tensor]:
    bins = getattr(config, "num_mel_bins", None) or 80
    frames = 2 * (getattr(config, "max_source_positions", None) or 1500)
    inputs = {"input_features": torch.zeros(batch, bins, frames, dtype=_float_dtype(model))}
    if getattr(config, "is_encoder_decoder", False):
        length = min(seq_len or 128, getattr(config, "max_target_positions", None) or 448)
        inputs["labels" if train else "decoder_input_ids"] = token_ids(batch, length, _vocabulary(config))
    return inputs


def _waveform(model: Any, config: Any, batch: int, seq_len: int | None, train: bool) -> dict[str, torch.Tensor]:
    return {"input_values": torch.zeros(batch, seq_len or 16_000, dtype=_float_dtype(model))}


def _float_dtype(model: Any) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
