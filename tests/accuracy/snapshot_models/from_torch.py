"""Models built from `torch.nn`'s own layers, in our own words: HanFa's toy language model and ResNet-50."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.accuracy.snapshot_models.course import Sizes


class WeighingAttention(nn.MultiheadAttention):
    """Self-attention of `nn.MultiheadAttention` when it returns its weights, as PyTorch 2.9 ran it.

    Later versions release the scaled queries and the projections before the function ends.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = x.transpose(1, 0)
        attended, weights = self.attend(x)
        return attended.transpose(1, 0), weights

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sequence, batch, width = x.shape
        q, k, v = self.project(x)
        q, k, v = (each.view(sequence, batch * self.num_heads, self.head_dim).transpose(0, 1) for each in (q, k, v))
        scaled = q * math.sqrt(1 / self.head_dim)
        weights = torch.bmm(scaled, k.transpose(-2, -1))
        weights = torch.softmax(weights, dim=-1)
        output = torch.bmm(weights, v)
        output = output.transpose(0, 1).contiguous().view(sequence * batch, width)
        output = self.out_proj(output)
        output = output.view(sequence, batch, width)
        weights = weights.view(batch, self.num_heads, sequence, sequence)
        weights = weights.mean(dim=1)
        return output, weights

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values [3, sequence, batch, width] of one product."""
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        return projected.unflatten(-1, (3, self.embed_dim)).permute(2, 0, 1, 3).contiguous()


class PostNormBlock(nn.Module):
    """Attention that returns its weights (so no fused attention) and a GELU feed-forward, normed after each."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = WeighingAttention(sizes.d_model, sizes.heads, batch_first=True)
        self.ln1 = nn.LayerNorm(sizes.d_model)
        self.ff = nn.Sequential(nn.Linear(sizes.d_model, sizes.d_ff), nn.GELU(), nn.Linear(sizes.d_ff, sizes.d_model))
        self.ln2 = nn.LayerNorm(sizes.d_model)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x)
        x = self.ln1(x + attended)
        fed = self.ff(x)
        x = self.ln2(x + fed)
        return x  # noqa: RET504


class ToyLM(nn.Module):
    """HanFa's language model, without positions or mask."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocab, sizes.d_model)
        self.blocks = nn.ModuleList(PostNormBlock(sizes) for _ in range(sizes.layers))
        self.ln_final = nn.LayerNorm(sizes.d_model)
        self.lm_head = nn.Linear(sizes.d_model, sizes.vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        x = self.ln_final(x)
        logits = self.lm_head(x)
        return logits  # noqa: RET504


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions to four times `width`, added to the input or its projection."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != 4 * width:
            projection = nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv3(out)
        out = self.bn3(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        out = self.relu(out)
        return out  # noqa: RET504


class ResNet50(nn.Module):
    """The residual network of He et al. (arXiv:1512.03385) with 3, 4, 6 and 3 bottlenecks, as torchvision has it."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = [], 64
        for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(channels, width, stride=2 if stage and not block else 1))
                channels = 4 * width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(x)
        x = x.flatten(1)
        x = self.fc(x)
        return x  # noqa: RET504
