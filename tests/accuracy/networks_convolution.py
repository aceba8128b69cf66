"""Networks of convolutions, poolings and the norms that go with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.accuracy.network import Network, normal


def _image() -> tuple[Tensor, ...]:
    return (normal(4, 3, 32, 32),)


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2), nn.GELU(), nn.MaxPool1d(2), nn.Conv1d(16, 32, 3, groups=4), nn.GELU()
    )


def conv2d() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.SiLU(), nn.MaxPool3d(2), nn.Conv3d(8, 16, (1, 3, 3)), nn.Tanh()
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 16, 4, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(16, 8, 2, stride=2, groups=4),
        nn.Sigmoid(),
    )


def dilated() -> nn.Module:
    return nn.Sequential(
        *(layer for rate in (1, 2, 4) for layer in (nn.Conv2d(3, 3, 3, padding=rate, dilation=rate), nn.ELU()))
    )


def depthwise_separable() -> nn.Module:
    def block(inner: int, outer: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        return [
            depthwise,
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        ]

    return nn.Sequential(*block(3, 16), nn.Hardswish(), *block(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 4, 1))


def group_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 4, 1))


def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.InstanceNorm2d(16, affine=True),
        nn.PReLU(16),
        nn.ReflectionPad2d(1),
        nn.Conv2d(16, 4, 3),
    )


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4), nn.Conv2d(3, 8, 3), nn.PixelUnshuffle(2))


def adaptive_and_upsample() -> nn.Module:
    return nn.Sequential(
        nn.AdaptiveMaxPool2d(16),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Upsample(scale_factor=1.5, mode="nearest"),
        nn.AdaptiveAvgPool2d(7),
    )


def channels_last() -> nn.Module:
    return conv2d().to(memory_format=torch.channels_last)


def weight_normalised() -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Conv1d(4, 16, 3)), nn.Softplus(), nn.utils.parametrizations.spectral_norm(nn.Conv1d(16, 4, 1))
    )


class Bottleneck(nn.Module):
    """ResNet's: 1x1, 3x3, 1x1 and an addition to the input, in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width // 4, 1, bias=False),
            nn.BatchNorm2d(width // 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 4, width // 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(width // 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(width // 4, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += x
        return self.relu(out)


def resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 32, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *stem,
        nn.MaxPool2d(3, 2, 1),
        Bottleneck(32),
        Bottleneck(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


class UNet(nn.Module):
    """Two levels down, two up, each joined to its level by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([self._block(3, 8), self._block(8, 16)])
        self.middle = self._block(16, 32)
        self.grow = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)])
        self.up = nn.ModuleList([self._block(32, 16), self._block(16, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _block(inner: int, outer: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1), nn.GroupNorm(4, outer), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for block in self.down:
            levels.append(block(x))
            x = nn.functional.max_pool2d(levels[-1], 2)
        x = self.middle(x)
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([levels.pop(), grow(x)], dim=1))
        return self.head(x)


NETWORKS = [
    Network("conv1d-grouped", conv1d, lambda: (normal(4, 4, 64),)),
    Network("conv2d", conv2d, _image),
    Network("conv3d", conv3d, lambda: (normal(2, 3, 8, 16, 16),)),
    Network("conv-transposed", transposed, lambda: (normal(2, 3, 8, 8),)),
    Network("conv-dilated", dilated, _image),
    Network("conv-depthwise-separable", depthwise_separable, _image),
    Network("conv-channels-last", channels_last, lambda: (_image()[0].to(memory_format=torch.channels_last),)),
    Network("batch-norm", batch_norm, _image),
    Network("group-norm", group_norm, _image),
    Network("instance-norm", instance_norm, _image),
    Network("pixel-shuffle", pixel_shuffle, lambda: (normal(2, 3, 8, 8),)),
    Network("adaptive-pool-and-upsample", adaptive_and_upsample, _image),
    Network("weight-and-spectral-norm", weight_normalised, lambda: (normal(2, 4, 32),)),
    Network("resnet-bottleneck", resnet, _image),
    Network("u-net", UNet, lambda: (normal(2, 3, 16, 16),)),
]
