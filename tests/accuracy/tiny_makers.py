"""Makers of inputs that only some models take; tiny_overrides says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.accuracy.network import normal
from tests.accuracy.tiny_inputs import BATCH, SAMPLES, TOKENS, Case, image_shape, tokens

Maker = Callable[[Case], Any] | None


def ones(*shape: int) -> Callable[[Case], torch.Tensor]:
    return lambda case: torch.ones(shape, dtype=torch.long)


def noise(*shape: int) -> Callable[[Case], torch.Tensor]:
    return lambda case: normal(*shape)


def text(case: Case) -> torch.Tensor:
    return tokens(case, BATCH, TOKENS)


def several(count: int) -> Callable[[Case], torch.Tensor]:
    """`count` images an example: (batch, count, channels, height, width)."""
    return lambda case: normal(BATCH, count, *image_shape(case))


def log_mel(frames: int, bins: int = 128) -> dict[str, Maker]:
    """Log-mel frames, bins first, and a mask that says that all of them are real."""
    return {
        "input_features": lambda case: normal(BATCH, case.first("num_mel_bins", of=case.audio, default=bins), frames),
        "input_features_mask": ones(BATCH, frames),
    }


def patch_images(case: Case) -> torch.Tensor:
    """Patches that are still small images, 4 by 4 an image."""
    patch = case.vision.patch_size
    return normal(BATCH * 16, 3, patch, patch)


NAFLEX: dict[str, Maker] = {
    "pixel_values": lambda case: normal(BATCH, 16, 3 * case.vision.patch_size**2),
    "spatial_shapes": lambda case: torch.tensor([[4, 4]] * BATCH),
    "pixel_attention_mask": ones(BATCH, 16),
}
CODEBOOKS: dict[str, Maker] = {
    "input_ids": lambda case: tokens(case, BATCH * case.first("num_codebooks", of=case.inner, default=4), TOKENS)
}
SERIES: dict[str, Maker] = {
    "past_values": noise(BATCH, 23),  # The context of 16 and the longest lag of 7.
    "past_time_features": noise(BATCH, 23, 1),
    "past_observed_mask": ones(BATCH, 23),
    "future_values": noise(BATCH, 8),
    "future_time_features": noise(BATCH, 8, 1),
}
ONE_IMAGE: dict[str, Maker] = {"pixel_values": several(1)}
TWO_IMAGES: dict[str, Maker] = {"pixel_values": several(2)}
MONO: dict[str, Maker] = {"input_values": noise(BATCH, 1, SAMPLES)}

DECISIONS: dict[str, Maker] = {
    "states": lambda case: normal(BATCH, TOKENS, case.config.state_dim),
    "actions": lambda case: normal(BATCH, TOKENS, case.config.act_dim),
    "rewards": noise(BATCH, TOKENS, 1),
    "returns_to_go": noise(BATCH, TOKENS, 1),
    "timesteps": lambda case: torch.arange(TOKENS).expand(BATCH, -1),
    "attention_mask": ones(BATCH, TOKENS),
}
TILES: dict[str, Maker] = {
    "pixel_values": lambda case: normal(BATCH, 1, 4, *image_shape(case)),
    "aspect_ratio_ids": ones(BATCH, 1),
    "aspect_ratio_mask": ones(BATCH, 1, 4),
}
#: A whole image and two tiles, of an image twice as high as wide.
TILED: dict[str, Maker] = {
    "pixel_values": several(3),
    "image_sizes": lambda case: torch.tensor([[112, 56]] * BATCH),
}
GEMMA_PATCHES: dict[str, Maker] = {
    "pixel_values": lambda case: normal(BATCH, 36, 3 * case.vision.patch_size**2),
    "image_position_ids": lambda case: torch.cartesian_prod(torch.arange(6), torch.arange(6)).expand(BATCH, -1, -1),
}
#: Every image's patches in one row, beside the patches of the next image.
PACKED_IMAGES: dict[str, Maker] = {
    "pixel_values": lambda case: normal(1, 3, case.vision.patch_size, BATCH * 16 * case.vision.patch_size),
    "target_sizes": lambda case: torch.tensor([[4, 4]] * BATCH),
}


def with_sounds(case: Case) -> torch.Tensor:
    """16 audio tokens a text: 64 frames, halved twice."""
    token = case.first("audio_token_id", "audio_token_index")
    return torch.cat([torch.full((BATCH, 16), token), tokens(case, BATCH, TOKENS)], dim=1)


def with_sixteen_patches(case: Case) -> torch.Tensor:
    return torch.cat([torch.full((BATCH, 16), case.inner.image_token_id), tokens(case, BATCH, TOKENS)], dim=1)


def numbered_patches(case: Case) -> torch.Tensor:
    """Patches behind the number of their row and column."""
    width = case.config.vision_config.patch_embed_hidden_size
    rows = torch.cartesian_prod(torch.arange(1, 5), torch.arange(1, 5)).expand(BATCH, -1, -1)
    return torch.cat([rows.float(), normal(BATCH, 16, width)], dim=-1)


def semantic(case: Case) -> torch.Tensor:
    """50 frames a second, beside the second of sound."""
    return normal(BATCH, SAMPLES // 320, case.config.semantic_model_config.feature_projection_input_dim)


def three_separators(case: Case) -> torch.Tensor:
    """Question, separators and context as Longformer reads them."""
    shape = (BATCH, 2, TOKENS) if "MultipleChoice" in type(case.module).__name__ else (BATCH, TOKENS)
    ids = tokens(case, *shape)
    ids[..., [5, 6, -1]] = case.config.sep_token_id
    return ids


def with_questions(case: Case) -> torch.Tensor:
    ids = tokens(case, BATCH, TOKENS)
    ids[:, 3] = case.config.question_token_id
    return ids


def half_masked(case: Case) -> torch.Tensor:
    """Every other patch of a video hidden, the same number in every example."""
    config = case.config
    count = (config.num_frames // config.tubelet_size) * (config.image_size // config.patch_size) ** 2
    return (torch.arange(count) % 2 == 0).expand(BATCH, -1)
