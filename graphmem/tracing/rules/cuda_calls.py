"""Python calls that take another way on CUDA than on meta: fused dropout, cuDNN's batch norm and RNNs."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.tracing.rules.registry import OpCall, rule

aten = torch.ops.aten


@rule("call", torch.dropout, device="cuda", source="ATen/native/Dropout.cpp, is_fused_kernel_acceptable")
def dropout(call: Any) -> Any:
    """On CUDA one kernel makes output and a boolean mask; elsewhere noise is drawn, scaled and multiplied."""
    x, p, train = call.argument(0, "input"), call.argument(1, "p"), call.argument(2, "train")
    if not train or not 0 < p < 1 or x.numel() == 0:
        return NotImplemented
    return torch.native_dropout(x, p, True)[0]


@rule("call", torch.batch_norm, device="cuda", source="ATen/native/Normalization.cpp, _select_batch_norm_backend")
def batch_norm(call: Any) -> Any:
    """cuDNN's kernels for three and more dimensions in float32 (and float16 with float32 weights); PyTorch's own else."""
    names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
    x, weight, bias, mean, var, training, momentum, eps, enabled = (
        call.argument(i, name) for i, name in enumerate(names)
    )
    low = x.dtype == torch.bfloat16 or (weight is not None and weight.dtype == torch.bfloat16)
    halves = x.dtype == torch.float16 and weight is not None and weight.dtype != torch.float32
    if (
        low or halves or weight is None or bias is None or x.dim() < 3 or not enabled or eps < 1e-5
        or ((mean is None) != (var is None)) or (mean is None and not training) or x.shape[0] > (880801 if training else 65535)
    ):  # fmt: skip
        return NotImplemented
    return aten.cudnn_batch_norm(
        x.contiguous(memory_format=_format(x)), weight, bias, mean, var, training, momentum, eps
    )[0]


def _format(x: torch.Tensor) -> torch.memory_format:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


@rule("output", "aten.cudnn_batch_norm.default", device="cuda", source="ATen/native/cudnn/BatchNorm.cpp")
def cudnn_batch_norm(call: OpCall) -> tuple[torch.Tensor, ...]:
    """Saved statistics only while training; reserve space is zero bytes in NCHW (ResNet-50 snapshots), not modelled in channels-last."""
    x, weight, training = call.args[0], call.args[1], call.args[5]
    saved = (weight.shape[0] if training else 0,)
    return (
        torch.empty_like(x),
        *(torch.empty(saved, dtype=weight.dtype, device="meta") for _ in range(2)),
        torch.empty(0, dtype=torch.uint8, device="meta"),
    )


@rule("output", "aten.cudnn_batch_norm_backward.default", device="cuda", source="ATen/native/cudnn/BatchNorm.cpp")
def cudnn_batch_norm_backward(call: OpCall) -> tuple[torch.Tensor, ...]:
    """Gradients of input, weight and bias."""
    x, weight = call.args[0], call.args[2]
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


_MODES = {torch.lstm: 2, torch.gru: 3, torch.rnn_tanh: 1, torch.rnn_relu: 0}


@rule("call", *_MODES, device="cuda", source="ATen/native/RNN.cpp and cudnn/RNN.cpp, _cudnn_impl")
def recurrent(call: Any) -> Any:
    """cuDNN runs all layers and time steps in one call; elsewhere every step is its own."""
    packed = (
        isinstance(call.args[1], torch.Tensor) and call.func is not torch.lstm and call.args[1].dtype == torch.int64
    )
    if packed or (call.func is torch.lstm and isinstance(call.args[1], torch.Tensor)):
        return NotImplemented  # packed sequences: their batch sizes shape every step
    x, hidden, weights, biases, layers, p, train, both, batch_first = call.args
    h, c = hidden if call.func is torch.lstm else (hidden, None)
    stride = 4 if biases else 2
    # The weights are views of one buffer (nn.LSTM flattens them on the GPU); one of them stands for it, there being no data.
    output, hy, cy, _, _ = aten._cudnn_rnn(
        x, list(weights), stride, weights[0].detach(), h, c, _MODES[call.func], (c if c is not None else h).shape[-1], 0, layers, batch_first, float(p),
        bool(train), bool(both), [], None,
    )  # fmt: skip
    return (output, hy, cy) if call.func is torch.lstm else (output, hy)


@rule(
    "output", "aten._cudnn_rnn_backward.default", device="cuda", source="ATen/native/cudnn/RNN.cpp, _cudnn_rnn_backward"
)
def recurrent_backward(
    call: OpCall,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, list[torch.Tensor]]:
    """The weights' gradients are views of one buffer. cuDNN's workspace and reserve are its own choice and left out."""
    x, weights, h, c = call.args[0], call.args[1], call.args[4], call.args[5]
    wanted = call.args[-1]
    buffer = torch.empty(sum(weight.numel() for weight in weights), dtype=x.dtype, device="meta")
    parts = buffer.split([weight.numel() for weight in weights])
    gradients = [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)] if wanted[3] else []
    return (
        torch.empty_like(x) if wanted[0] else None,
        torch.empty_like(h) if wanted[1] else None,
        torch.empty_like(c) if wanted[2] and c is not None else None,
        gradients,
    )
