"""What peft's comparison of methods for images trains: FLUX.2-klein's transformer, on cached prompts and latents."""

from __future__ import annotations

import torch
from diffusers import Flux2Transformer2DModel
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Dinov2Config, Dinov2Model

#: 20 prompts less 2 for validation and 4 for the test.
_SAMPLES = 14
_BATCH, _TEXT, _SIDE = 2, 512, 32
_TARGETS = [
    "to_k", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "linear_out", "to_q", "to_qkv_mlp_proj", "to_add_out",
    "to_v", "linear_in",
]  # fmt: skip


class ClippedAdamW(torch.optim.AdamW):
    """The loop clips the norm of the gradients before it steps."""

    def step(self) -> None:  # type: ignore[override]
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        super().step()


class Training(nn.Module):
    """The loop's part from a batch's indices to its loss, and what stays on the device beside the transformer."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.dino = Dinov2Model(Dinov2Config()).requires_grad_(False)
        self.transformer = transformer
        bf16 = torch.bfloat16
        self.register_buffer("prompts", torch.empty(_SAMPLES, _TEXT, 7680, dtype=bf16))
        self.register_buffer("text_ids", torch.empty(_SAMPLES, _TEXT, 4, dtype=torch.int64))
        self.register_buffer("latents", torch.empty(_SAMPLES, 128, _SIDE, _SIDE, dtype=bf16))

    def forward(self) -> tuple[torch.Tensor, ...]:
        where = self.latents.device
        chosen = torch.zeros(_BATCH, dtype=torch.int64, device=where)
        latents = self.latents.index_select(0, chosen)
        prompts = self.prompts.index_select(0, chosen)
        text_ids = self.text_ids.index_select(0, chosen)
        image_ids = torch.zeros(_BATCH, _SIDE * _SIDE, 4, dtype=torch.int64, device=where)
        noise = torch.randn_like(latents)
        times = torch.zeros(_BATCH, device=where)
        sigmas = torch.zeros(_BATCH, 1, 1, 1, dtype=latents.dtype, device=where)
        noisy = (1.0 - sigmas) * latents + sigmas * noise
        packed = noisy.reshape(_BATCH, 128, _SIDE * _SIDE).permute(0, 2, 1)
        predicted = self.transformer(
            hidden_states=packed, timestep=times / 1000, guidance=None, encoder_hidden_states=prompts, txt_ids=text_ids,
            img_ids=image_ids, return_dict=False,
        )[0]  # fmt: skip
        predicted = predicted.permute(0, 2, 1).reshape(latents.shape)
        target = noise - latents
        loss = ((predicted.float() - target.float()) ** 2).reshape(_BATCH, -1).mean(1).mean()
        return loss, latents, prompts, text_ids, image_ids, noise, noisy, packed, predicted, target


def training(rank: int | None) -> nn.Module:
    """3,875,544,576 parameters in bf16, all trained, or 38,338,560 of LoRA in fp32 at rank 32, as the source prints."""
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        ).to(torch.bfloat16)  # fmt: skip
        transformer.enable_gradient_checkpointing()
        if rank is not None:
            transformer = get_peft_model(transformer, LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS))
        return Training(transformer).train()
