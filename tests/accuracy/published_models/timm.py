"""Vision transformers: timm's ViT-H/14 compiled and DINOv2's ViT-g/14 checkpointed in eager, as torchao's benchmark of low-bit
optimizers trains them, and torchvision's ViT-L/16 of PyTorch's tutorial on stepping in backward.

torchao: by benchmarks/benchmark_low_bit_adam.py at aacaf9b (August 2024) and 1b1e94c (its own offload), with timm of then and PyTorch 2.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from graphmem.tracing.device import Device
from graphmem.training.compiled import compiled

#: The crop of the script's loader, and the tutorial's images.
_IMAGE = 224


@dataclass(frozen=True)
class Shape:
    """Arguments of timm's ``vision_transformer``; ``gated``: SiLU of one half times the other, in place of GELU."""

    width: int
    layers: int
    heads: int
    inner: int
    gated: bool = False
    #: Each branch is scaled by learned weights.
    scaled: bool = False
    #: Attention is PyTorch's own module, as torchvision has it.
    torchs: bool = False
    patch: int = 14
    #: resisc45's, or ImageNet's.
    classes: int = 45

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (_IMAGE // self.patch) ** 2 + 1


HUGE = Shape(1280, 32, 16, 5120)
GIANT = Shape(1536, 40, 24, 8192, gated=True, scaled=True)
LARGE = Shape(1024, 24, 16, 4096, torchs=True, patch=16, classes=1000)


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.size = shape.heads, shape.width // shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(x)


class _TorchAttention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class _MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gated = shape.gated
        self.fc1 = nn.Linear(shape.width, shape.inner)
        self.fc2 = nn.Linear(shape.inner // 2 if shape.gated else shape.inner, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        if self.gated:
            gate, up = x.chunk(2, dim=-1)
            x = F.silu(gate) * up
        else:
            x = F.gelu(x)
        return self.fc2(x)


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width)
        self.attn = (_TorchAttention if shape.torchs else _Attention)(shape)
        self.norm2, self.mlp = nn.LayerNorm(shape.width), _MLP(shape)
        self.ls1, self.ls2 = (_Scale(shape.width) if shape.scaled else nn.Identity() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """The model, its class token read by a head; ``checkpointing``: timm's, by reentry, a block at a time."""

    def __init__(self, shape: Shape, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.patches = nn.Conv2d(3, shape.width, shape.patch, shape.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.empty(1, shape.tokens, shape.width))
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.classes)

    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.pos_embed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self._embedded(images)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True) if self.checkpointing else block(x)
        x = self.norm(x)
        return self.head(x[:, 0])


class Training(nn.Module):
    """The script's part from a batch to its loss; the labels come in with the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(images), labels)


class OffloadedAdam(torch.optim.Optimizer):
    """torchao's ``CPUOffloadOptimizer``: states and the step are on the host, gradients stay until ``zero_grad``."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """On the host."""


def batch(size: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels."""
    return torch.zeros(size, 3, _IMAGE, _IMAGE, dtype=dtype), torch.zeros(size, dtype=torch.int64)


def huge(device: Device, size: int) -> nn.Module:
    """ViT-H/14 in fp32, compiled as one graph under bf16 autocast; the loss is not."""
    with torch.device("meta"):
        model = VisionTransformer(HUGE, checkpointing=False).train()
        images, _ = batch(size)
    return Training(
        compiled(
            model, (images,), {}, lambda output: output, device, partial(torch.autocast, "cuda", dtype=torch.bfloat16)
        )
    )


def giant() -> nn.Module:
    """ViT-g/14 in bf16, every block checkpointed."""
    with torch.device("meta"):
        return Training(VisionTransformer(GIANT, checkpointing=True).bfloat16().train())


def large() -> nn.Module:
    """torchvision's ViT-L/16 in fp32, its output summed up for a loss."""
    with torch.device("meta"):
        return VisionTransformer(LARGE, checkpointing=False).train()
