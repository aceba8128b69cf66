"""Inputs for a tiny model: what its `forward` asks for by name, in shapes that its config tells.

Each parameter name has a maker. Required parameters and those in `_WANTED` are given; `tiny_overrides` adds, replaces
and drops some by model type or class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from tests.accuracy.network import integers, normal, tensors
from tests.accuracy.tiny_config import special_tokens
from tests.accuracy.tiny_rules import VOCABULARY

#: Examples, tokens and decoded tokens of each, choices, samples of sound (a second), frames of it, pixels a side.
BATCH, TOKENS, DECODED, CHOICES, SAMPLES, FRAMES, PIXELS = 2, 16, 8, 2, 16000, 64, 64


@dataclass(frozen=True)
class Case:
    """What inputs are made from: a model that can run (on the CPU, not on meta), and its class and config."""

    module: nn.Module

    @property
    def config(self) -> PreTrainedConfig:
        return self.module.config

    @cached_property
    def names(self) -> dict[str, inspect.Parameter]:
        """The parameters of `forward`, without `self`, `*args` and `**kwargs`."""
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        found = inspect.signature(type(self.module).forward).parameters.values()
        return {item.name: item for item in list(found)[1:] if item.kind not in variadic}

    @cached_property
    def inner(self) -> PreTrainedConfig:
        """The config of the multimodal model where the class wraps one."""
        return _part(self.config, "vlm_config", "thinker_config") or self.config

    @cached_property
    def text(self) -> PreTrainedConfig:
        return _part(self.inner, "text_config", "language_config", "text_encoder") or self.inner.get_text_config()

    @cached_property
    def vision(self) -> PreTrainedConfig:
        return (
            _part(self.inner, "vision_config", "image_config", "vision_tower_config", "backbone_config") or self.inner
        )

    @cached_property
    def audio(self) -> PreTrainedConfig:
        return (
            _part(self.inner, "audio_config", "speech_config", "encoder_config", "audio_encoder_config") or self.inner
        )

    @cached_property
    def special(self) -> set[int]:
        """Ids of every token that some config names."""
        return {0, 1, 2, *special_tokens(self.config.to_dict())}

    def method(self, name: str) -> Callable[..., Any] | None:
        """The method of the innermost model that has it, whose signature names what it takes."""
        found = [getattr(module, name) for module in self.module.modules() if hasattr(module, name)]
        return found[-1] if found else None

    def first(self, *names: str, of: PreTrainedConfig | None = None, default: Any = None) -> Any:
        """The first of these fields that the config has and that is not None."""
        found = (getattr(of or self.config, name, None) for name in names)
        return next((value for value in found if value is not None), default)


def _part(config: PreTrainedConfig, *names: str) -> PreTrainedConfig | None:
    parts = (getattr(config, name, None) for name in names)
    return next((part for part in parts if isinstance(part, PreTrainedConfig)), None)


def tokens(case: Case, *shape: int, seed: int = 0) -> Tensor:
    """Ids that mean nothing special to the model."""
    size = case.first("vocab_size", "src_vocab_size", of=case.text, default=128)
    size = case.first("vocab_size", default=size) if not isinstance(size, int) else size
    plain = [token for token in range(min(size, VOCABULARY)) if token not in case.special]
    return torch.tensor(plain)[integers(len(plain), *shape, seed=seed)]


def image_shape(case: Case) -> tuple[int, int, int]:
    """(channels, height, width)."""
    size = case.first("image_size", "img_size", "input_size", of=case.vision, default=None) or PIXELS
    size = case.first("image_size", default=size) if case.vision is not case.config and not size else size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = case.first("num_channels", "in_channels", "in_chans", of=case.vision, default=3)
    return channels if isinstance(channels, int) else 3, height, width


def images(case: Case) -> Tensor:
    return normal(BATCH, *image_shape(case))


def videos(case: Case) -> Tensor:
    frames = case.first("num_frames", "frames_per_clip", of=case.vision, default=4)
    return normal(BATCH, frames, *image_shape(case))


def flat_patches(case: Case) -> Tensor:
    """(patches of all images, values a patch): Qwen2-VL's layout, 4 by 4 patches an image."""
    channels = case.first("in_channels", "in_chans", "num_channels", of=case.vision, default=3)
    patch, time = (
        case.first("patch_size", of=case.vision),
        case.first("temporal_patch_size", "patch_temporal", of=case.vision, default=1),
    )
    return normal(BATCH * 16, channels * time * patch * patch)


def pixels(case: Case) -> Tensor:
    if {"grid_thw", "image_grid_thw"} & set(case.names):
        return flat_patches(case)
    return videos(case) if case.first("num_frames", "frames_per_clip") else images(case)


def grids(case: Case) -> Tensor:
    return torch.tensor([[1, 4, 4]] * BATCH)


def mel(case: Case) -> Tensor:
    """Log-mel frames: (batch, bins, frames) where the encoder has positions for half the frames, as Whisper's does."""
    bins = case.first(
        "num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel", "input_dim", of=case.audio, default=80
    )
    positions = case.first("max_source_positions", of=case.audio)
    return normal(BATCH, bins, 2 * positions) if positions else normal(BATCH, FRAMES, bins)


def waves(case: Case) -> Tensor:
    return normal(BATCH, SAMPLES)


def token_types(case: Case) -> Tensor:
    return torch.zeros(BATCH, TOKENS, dtype=torch.long)


def boxes(case: Case) -> Tensor:
    """Left, top, right and bottom in thousandths, ordered."""
    corners = integers(400, BATCH, TOKENS, 2)
    return torch.cat([corners, corners + 50], dim=-1)


MAKERS: dict[str, Callable[[Case], Any]] = {
    "input_ids": lambda case: tokens(case, BATCH, TOKENS),
    "decoder_input_ids": lambda case: tokens(case, BATCH, DECODED, seed=1),
    "pixel_values": pixels,
    "pixel_values_videos": videos,
    "hidden_states": flat_patches,
    "grid_thw": grids,
    "image_grid_thw": grids,
    "input_features": mel,
    "input_values": waves,
    "bbox": boxes,
    "image_sizes": lambda case: torch.tensor([image_shape(case)[1:]] * BATCH),
}
_WANTED = {"input_ids", "decoder_input_ids", "pixel_values", "image_grid_thw", "input_features", "input_values", "bbox"}
#: Method that makes features, fields that name the placeholder token, inputs of which one must be there.
_MODALITIES = (
    (
        "get_image_features",
        ("image_token_id", "image_token_index", "img_token_id"),
        {"pixel_values", "image_patches", "flattened_patches"},
    ),
    ("get_audio_features", ("audio_token_id", "audio_token_index"), {"input_features", "input_values", "audio_values"}),
)


def make(case: Case, changes: Mapping[str, Callable[[Case], Any] | None]) -> dict[str, Any]:
    """The inputs by parameter name; `changes` are makers by name, None to leave one out."""
    changes = {**_of_the_class(case), **changes}
    names = {name for name, item in case.names.items() if name in _WANTED or item.default is inspect.Parameter.empty}
    names = {name for name in names | set(changes) if changes.get(name, name) is not None}
    names |= {name for name in _asked_by_features(case, names) if changes.get(name, name) is not None}
    makers = {**MAKERS, **changes}
    if unknown := sorted(names - set(makers)):
        raise NotImplementedError(f"no maker for the inputs {unknown}")
    return _with_placeholders(case, {name: makers[name](case) for name in sorted(names)})


def _asked_by_features(case: Case, names: set[str]) -> set[str]:
    """What the methods that make features of given images and sounds require although `forward` does not."""
    methods = [case.method(method) for method, _, needs in _MODALITIES if needs & names]
    items = [item for method in methods if method for item in inspect.signature(method).parameters.values()]
    return {item.name for item in items if item.default is inspect.Parameter.empty and item.kind != item.VAR_KEYWORD}


def _of_the_class(case: Case) -> dict[str, Callable[[Case], Any] | None]:
    """What the class's name and kind say of the inputs."""
    name = type(case.module).__name__
    found: dict[str, Callable[[Case], Any] | None] = {}
    if "decoder_input_ids" in case.names and (not case.config.is_encoder_decoder or "Classification" in name):
        found["decoder_input_ids"] = None
    if "MultipleChoice" in name:
        found["input_ids"] = lambda case: tokens(case, BATCH, CHOICES, TOKENS)
    if name.endswith("ForSequenceClassification") and case.config.is_encoder_decoder:
        found["input_ids"] = _ended
    return found


def _ended(case: Case) -> Tensor:
    """Tokens with one end of sequence each, where some encoder-decoders classify."""
    ids = tokens(case, BATCH, TOKENS)
    ids[:, -1] = case.text.eos_token_id
    return ids


def _with_placeholders(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """As many image and audio tokens in the text as the model makes features of its images and sounds."""
    for method, tokens_named, needs in _MODALITIES:
        token = case.first(*tokens_named, of=case.inner)
        missing = isinstance(token, int) and "input_ids" in found and not (found["input_ids"] == token).any()
        if missing and case.method(method) and needs & set(found):
            found["input_ids"] = _spread(found["input_ids"], token, _count(case, method, found))
            if "mm_token_type_ids" in case.names:
                found["mm_token_type_ids"] = (found["input_ids"] == token).long()
    return found


def _spread(ids: Tensor, token: int, count: int) -> Tensor:
    """`count` placeholders in all, the same number in each text, after its fourth token."""
    if count % len(ids):
        raise ValueError(f"{count} features do not divide by {len(ids)} texts")
    return torch.cat([ids[:, :4], torch.full((len(ids), count // len(ids)), token), ids[:, 4:]], dim=1)


def _count(case: Case, method: str, found: dict[str, Any]) -> int:
    """How many vectors the model's `method` makes of these inputs."""
    features = case.method(method)
    assert features is not None
    taken = inspect.signature(features).parameters
    given = {name: value for name, value in found.items() if name in taken}
    if "input_ids" in given and taken["input_ids"].default is not inspect.Parameter.empty:
        del given["input_ids"]
    training = case.module.training
    case.module.eval()
    with torch.no_grad():
        outputs = features(**given)
    case.module.train(training)
    pooled = getattr(outputs, "pooler_output", None)
    return sum(tensor.numel() // tensor.shape[-1] for tensor in tensors(outputs if pooled is None else pooled))
