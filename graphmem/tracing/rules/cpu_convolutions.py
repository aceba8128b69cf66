"""Convolutions on the CPU: which are oneDNN's, and in what order PyTorch and oneDNN allocate for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from graphmem.tracing.rules.cpu_contiguous import contiguous_bytes
from graphmem.tracing.rules.cpu_onednn import (
    ALIGNMENT,
    BACKWARD_TILES,
    FORWARD_TILES,
    STRIDED_TILES,
    TRANSPOSED_TILES,
    Convolution,
)
from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

_SOURCE = "aten/src/ATen/native/Convolution.cpp, ConvParams::use_mkldnn; mkldnn/Conv.cpp; oneDNN src/cpu/x64"
_Program = tuple[int | Out | Free, ...]


def _channels_last(tensor: torch.Tensor) -> bool:
    if tensor.is_contiguous() or tensor.dim() not in (4, 5):
        return False
    return tensor.is_contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)


def _in_last_order(tensor: torch.Tensor) -> int:
    """Bytes of the copy that brings a tensor to channels-last order; a depthwise weight is in it either way."""
    memory_format = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return 0 if tensor.is_contiguous(memory_format=memory_format) else tensor.nbytes


def _by_onednn(
    tensor: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], dilation: Sequence[int], transposed: bool
) -> bool:
    """oneDNN runs float32 but for 1x1 convolutions of few images, which one thread does faster by a matrix product."""
    plain = all(size == 1 for size in (*weight.shape[-2:], *stride, *dilation)) or (
        weight.dim() == 3 and weight.shape[-1] == 1
    )
    if not torch.backends.mkldnn.is_available() or tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    one_by_one = plain and all(step == 1 for step in (*stride, *dilation)) and tensor.shape[0] < 16
    return transposed or not one_by_one or tensor.dtype != torch.float32


def _described(
    tensor: torch.Tensor,
    weight: torch.Tensor,
    output: Sequence[int],
    stride: Sequence[int],
    groups: int,
    bias: bool,
    transposed: bool,
) -> Convolution:
    source, target = (list(output), list(tensor.shape)) if transposed else (list(tensor.shape), list(output))
    kernel = tuple(weight.shape[2:]) if weight.dim() > 3 else (1, *weight.shape[2:])
    return Convolution(
        target[0], source[1], target[1], groups, kernel, tuple(stride), math.prod(source[2:]), math.prod(target[2:]),
        math.prod(target[-2:]) if len(target) > 3 else target[-1], tensor.element_size(), bias and not transposed,
    )  # fmt: skip


@rule("scratch", "aten.convolution.default", device="cpu", source=_SOURCE)
def convolution(call: OpCall) -> Scratch | None:
    """Input and weight in oneDNN's formats, the result in its own, and then the result that PyTorch returns."""
    tensor, weight, bias, stride, _, dilation, transposed, _, groups = call.args
    if not _by_onednn(tensor, weight, stride, dilation, transposed):
        return Scratch((contiguous_bytes(tensor),))
    described = _described(tensor, weight, call.result.shape, stride, groups, bias is not None, transposed)
    if _channels_last(tensor) or _channels_last(weight):
        copied = (_in_last_order(tensor), _in_last_order(weight))
        tiles = TRANSPOSED_TILES if transposed else 0 if described.depthwise else FORWARD_TILES
        blocked = _transposed_weight(described) if transposed else described.forward().weight
        return Scratch(program=(*copied, Out(), tiles, blocked))
    if transposed:
        return Scratch(program=_transposed_forward(described, call.result))
    formats = described.forward()
    kept = (contiguous_bytes(tensor), formats.scratch, formats.source, formats.weight, formats.target)
    return Scratch(program=(*kept, Free(3), Free(2), Free(1), Out()))


def _transposed_weight(described: Convolution) -> int:
    return -(-described.inputs // 16) * 16 * described.outputs * described.taps * described.item


def _transposed_forward(described: Convolution, result: torch.Tensor) -> _Program:
    """It is the gradient of a convolution, by kernels that work on channels-last tensors; in groups by way of im2col."""
    formats = described.backward_data()
    if described.groups > 1:
        return (formats.scratch + result.nbytes + 2 * ALIGNMENT, result.nbytes, Free(0), Out())
    source = described.batch * described.outputs * described.output_pixels * described.item
    weight = _transposed_weight(described)
    return (TRANSPOSED_TILES, source, weight, result.nbytes, Free(2), Free(1), Free(0), result.nbytes, Out(), Free(3))


@rule("scratch", "aten.convolution_backward.default", device="cpu", source=_SOURCE)
def convolution_backward(call: OpCall) -> Scratch | None:
    """First the input's gradient, then those of weight and bias, each by a kernel with formats of its own."""
    gradient, tensor, weight, _, stride, _, dilation, transposed, _, groups, wanted = call.args
    places = _places(wanted)
    if not _by_onednn(tensor, weight, stride, dilation, transposed):
        order = [places[index] for index in (0, 2, 1) if index in places]
        return Scratch(program=(contiguous_bytes(gradient), *map(Out, order)))
    described = _described(tensor, weight, gradient.shape, stride, groups, bool(wanted[2]), transposed)
    if _channels_last(tensor) or _channels_last(weight):
        return Scratch(program=_channels_last_backward(call, described, places, transposed))
    program: list[int | Out | Free] = [contiguous_bytes(gradient)]
    if wanted[0]:
        program += _data(described, call.result[0].nbytes, transposed, 1)
    if wanted[1] or wanted[2]:
        taken = sum(isinstance(step, int) for step in program)
        program += _weights(described, call.result, places, transposed, taken)
    return Scratch(program=tuple(program))


def _places(wanted: Sequence[bool]) -> dict[int, int]:
    """Which of the gradients of input, weight and bias is which output."""
    present = [index for index in range(3) if wanted[index]]
    return {index: position for position, index in enumerate(present)}


def _data(described: Convolution, nbytes: int, transposed: bool, taken: int) -> _Program:
    formats = described.forward() if transposed else described.backward_data()
    read, written = (formats.source, formats.target) if transposed else (formats.target, formats.source)
    kept = (read, formats.weight, written, formats.scratch)
    freed = (Free(taken + 3), Free(taken + 1), Free(taken))
    if formats.channels_last:
        return (*kept, *freed, nbytes, Out(0), Free(taken + 2), Free(taken + 4))
    return (*kept, *freed, Out(0), Free(taken + 2))


def _weights(described: Convolution, result: Any, places: dict[int, int], transposed: bool, taken: int) -> _Program:
    formats = described.backward_weights()
    bias = result[2].nbytes if 2 in places else 0
    first, second = (formats.source, formats.target) if transposed else (formats.target, formats.source)
    kept = (first, second, formats.weight, formats.scratch, bias)
    outputs = tuple(Out(places[index]) for index in (2, 1) if index in places)
    return (*kept, Free(taken + 3), Free(taken + 1), Free(taken), *outputs, Free(taken + 2), Free(taken + 4))


def _channels_last_backward(call: OpCall, described: Convolution, places: dict[int, int], transposed: bool) -> _Program:
    """All three tensors are brought to that order; the weight's gradient goes by way of a plain tensor."""
    gradient, tensor, weight, wanted = *call.args[:3], call.args[10]
    program: list[int | Out | Free] = [*map(_in_last_order, (gradient, tensor, weight))]
    blocked = described.plain_weight if transposed else described.backward_data_in_channels_last()
    if wanted[0]:
        tiles = STRIDED_TILES if described.strided and not transposed else BACKWARD_TILES
        tiles = 0 if described.depthwise else tiles
        program += [Out(0), blocked, tiles, Free(4), Free(3)]
    if wanted[1]:
        taken = sum(isinstance(step, int) for step in program)
        written, scratch = (
            described.backward_weights_in_channels_last() if not transposed else (described.plain_weight, 0)
        )
        bias = call.result[2].nbytes if 2 in places else 0
        program += [
            written,
            scratch,
            bias,
            Free(taken + 1),
            *((Out(places[2]),) if bias else ()),
            call.result[1].nbytes,
        ]
        program += [Out(places[1]), Free(taken + 3), Free(taken), Free(taken + 2)]
    return tuple(program)
