"""What oneDNN keeps for one convolution on the CPU: copies in the formats its kernels read and write, and their scratch.

PyTorch gives oneDNN its own allocator, so each of these is a CPU allocation. Formats are those that oneDNN 3.x picks for float32 with
AVX-512 (channels in blocks of 16) or AVX2 (8), as `ONEDNN_VERBOSE=1` prints them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

#: oneDNN rounds each part of its scratch up, and adds this for alignment.
ALIGNMENT = 128
#: Batches of small matrix products, and a page-aligned buffer for one tile of them, in kernels on channels-last tensors.
FORWARD_TILES, BACKWARD_TILES, STRIDED_TILES, TRANSPOSED_TILES = 8216, 8344, 36888, 37016


@dataclass(frozen=True, slots=True)
class Formats:
    """Bytes of each copy; 0: the plain tensor serves. ``channels_last``: the result comes in that order and is copied once more."""

    source: int
    weight: int
    target: int
    scratch: int = 0
    channels_last: bool = False


@dataclass(frozen=True)
class Convolution:
    """Sizes of one convolution. For a transposed one, of the convolution whose gradient it is, with input and output exchanged."""

    batch: int
    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    input_pixels: int
    output_pixels: int
    #: Pixels of one output plane: im2col goes plane by plane.
    plane: int
    item: int
    bias: bool

    @cached_property
    def block(self) -> int:
        """Channels in a block."""
        return 16 if torch.backends.cpu.get_cpu_capability() in ("AVX512", "DEFAULT") else 8

    def _padded(self, channels: int, block: int = 0) -> int:
        block = block or self.block
        return -(-channels // block) * block

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.inputs == self.outputs

    @property
    def strided(self) -> bool:
        return any(step > 1 for step in self.stride)

    @property
    def plain_weight(self) -> int:
        return self.outputs * (self.inputs // self.groups) * self.taps * self.item

    @property
    def _by_groups(self) -> bool:
        """Whether groups can be blocked: both sides of a group by 16, 8 or 4 channels."""
        return (self.inputs // self.groups) % 4 == 0 and (self.outputs // self.groups) % 4 == 0

    def _source(self, channels: int) -> int:
        return self.batch * channels * self.input_pixels * self.item

    def _target(self, channels: int) -> int:
        return self.batch * channels * self.output_pixels * self.item

    @property
    def _padded_bias(self) -> int:
        uneven = self.bias and self.outputs % self.block
        return self._padded(self.outputs) * self.item + ALIGNMENT if uneven else 0

    @property
    def _columns(self) -> int:
        """im2col of one plane of one group."""
        return (self.inputs // self.groups) * self.taps * self.plane * self.item

    @property
    def _without_strides(self) -> int:
        """A strided 1x1 convolution first gathers the pixels it needs."""
        gathers = self.strided and self.taps == 1
        return self._padded(self.inputs) * self.output_pixels * self.item + ALIGNMENT if gathers else 0

    def forward(self) -> Formats:
        """Formats of the forward kernel."""
        if self.depthwise:
            channels = self._padded(self.groups)
            weight = channels * self.taps * self.item
            return Formats(self._source(channels), weight, self._target(channels), self._padded_bias)
        if self.groups > 1:
            target = self._target(self.outputs)
            if not self._by_groups:
                return Formats(0, 0, target, self._columns + ALIGNMENT)
            return Formats(self._source(self.inputs), self.plain_weight, target)
        outputs, target = self._padded(self.outputs), self._target(self._padded(self.outputs))
        if self.inputs < self.block:  # an image: its few channels stay as they are
            return Formats(0, outputs * self.inputs * self.taps * self.item, target, self._padded_bias)
        inputs = self._padded(self.inputs)
        scratch = self._padded_bias + self._without_strides
        return Formats(self._source(inputs), outputs * inputs * self.taps * self.item, target, scratch)

    def backward_data(self) -> Formats:
        """Formats of the kernel for the input's gradient; its source is what it writes."""
        if self.depthwise:
            return self.forward()
        if self.groups > 1:
            if not self._by_groups:
                return Formats(self._source(self.inputs), 0, 0, self._columns + ALIGNMENT)
            return Formats(self._source(self.inputs), self.plain_weight, self._target(self.outputs))
        if self.strided and self.output_pixels > 1:
            inputs = self._padded(self.inputs, 16 if self.inputs <= 16 else 32)
            weight = self.outputs * inputs * self.taps * self.item
            return Formats(
                self._source(self.inputs), weight, self._target(self.outputs), STRIDED_TILES, self.inputs > 1
            )
        inputs, outputs = self._padded(self.inputs), self._padded(self.outputs)
        return Formats(self._source(inputs), outputs * inputs * self.taps * self.item, self._target(outputs))

    def backward_data_in_channels_last(self) -> int:
        """The weight's format where tensors are in channels-last order."""
        if self.depthwise:
            return self.forward().weight
        inputs = self._padded(self.inputs // self.groups, 16 if self.inputs <= 16 else 32)
        return self.outputs * inputs * self.taps * self.item

    @property
    def _small_depthwise(self) -> bool:
        """Depthwise 3x3 on images no smaller than that has a kernel of its own for the weight's gradient."""
        return self.depthwise and self.kernel[-2:] == (3, 3) and self.input_pixels >= self.taps

    def backward_weights_in_channels_last(self) -> tuple[int, int]:
        """The format of the weight's gradient there, and the scratch: every group is padded to whole blocks."""
        if self.groups == 1 or self._small_depthwise:
            return self.backward_weights().weight, 0
        inputs, outputs = self._padded(self.inputs // self.groups), self._padded(self.outputs // self.groups)
        bias = self.groups * outputs * self.item + ALIGNMENT if self.bias else 0
        return self.groups * inputs * outputs * self.taps * self.item, bias

    def backward_weights(self) -> Formats:
        """Formats of the kernel for the weight's gradient; its weight is what it writes."""
        small = self.kernel[-1] <= 14
        if self._small_depthwise:
            channels = self._padded(self.groups)
            weight = channels * self.taps * self.item
            return Formats(self._source(channels), weight, self._target(channels), self._padded_bias)
        if self.groups > 1 or not small:  # im2col, and a sum that is booked as so many numbers as the weight has bytes
            return Formats(0, self.plain_weight, 0, self._columns + 4 * self.plain_weight + 2 * ALIGNMENT)
        if self.inputs <= 3:
            outputs = self._padded(self.outputs)
            weight = outputs * self.inputs * self.taps * self.item
            return Formats(0, weight, self._target(outputs), self._padded_bias)
        block = 8 if self.inputs < self.block and self.taps > 1 else self.block
        inputs, outputs = self._padded(self.inputs, block), self._padded(self.outputs, block)
        scratch = (self._padded_bias if block == self.block else 0) + self._without_strides
        return Formats(self._source(inputs), outputs * inputs * self.taps * self.item, self._target(outputs), scratch)
