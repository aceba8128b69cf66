"""Linear layers whose frozen weight is stored quantized, as bitsandbytes has them, for QLoRA and adapters on int8.

Their tensors have the layouts of `graphmem.parameters.schemes`; what their kernels take for a while is written here as tensors that
come and go. The weight itself is never trained, so autograd keeps no input for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphmem.parameters.schemes import SCHEMES, Part

_SCHEME: dict[str, str] = {"nf4": "nf4", "nf4-double": "nf4-double", "int8": "llm-int8"}
_TORCH = {"U8": torch.uint8, "I8": torch.int8, "F32": torch.float32}
_BLOCK = 64


class QuantizedLinear(nn.Linear):
    """An ``nn.Linear`` whose weight is packed. ``dtype``: what it was, and what it is dequantized to."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, inputs: int, outputs: int, load_in: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = inputs, outputs
        self.compute_dtype = dtype
        self.double = load_in == "nf4-double"
        layout = next(scheme.layout for scheme in SCHEMES if scheme.key == _SCHEME[load_in])
        for part in layout(outputs, inputs):
            tensor = torch.empty(part.shape, dtype=_dtype_of(part), device=linear.weight.device)
            if part.holds_weight:
                self.weight = nn.Parameter(tensor, requires_grad=False)
            else:
                self.register_buffer(part.suffix.rpartition(".")[2], tensor)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        self.train(linear.training)


class Linear4bit(QuantizedLinear):
    """Weights in 4 bits with block maxima (bitsandbytes ``Linear4bit``): dequantized whole before each product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """bitsandbytes/nn/modules.py: the input takes the compute dtype, the result the input's."""
        x = input.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return _Product4bit.apply(x, bias, self).to(input.dtype)

    def maxima(self) -> torch.Tensor | None:
        """The block maxima in fp32 ``[blocks]``, where double quantization has them packed."""
        blocks = -(-self.in_features * self.out_features // _BLOCK)
        return self.weight.new_empty(blocks, dtype=torch.float32) if self.double else None

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight ``[out, in]``."""
        return self.weight.new_empty((self.out_features, self.in_features), dtype=dtype)


class _Product4bit(torch.autograd.Function):
    """bitsandbytes/autograd/_functions.py, MatMul4Bit (0.50; its fused kernels for few tokens are left out): nothing of the input is
    saved, and backward dequantizes again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, layer: Linear4bit) -> torch.Tensor:
        ctx.layer = layer
        maxima, shifted = layer.maxima(), layer.maxima()  # both live until the product is there
        result = nn.functional.linear(x, layer.dequantized(x.dtype), bias)
        del maxima, shifted
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        maxima = ctx.layer.maxima()
        weight = ctx.layer.dequantized(ctx.layer.compute_dtype)
        del maxima
        weight = weight.to(grad.dtype)
        return torch.matmul(grad, weight), None, None


class Linear8bit(QuantizedLinear):
    """Weights in int8 with a scale a row (bitsandbytes ``Linear8bitLt``, weights frozen): inputs are quantized, products are int32."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """bitsandbytes/nn/modules.py."""
        return _Product8bit.apply(input, self)


class _Product8bit(torch.autograd.Function):
    """bitsandbytes/autograd/_functions.py, MatMul8bitLt (0.50, threshold 6): computes in fp16. No column is taken as an outlier.

    The input stays as an attribute, not as a saved tensor: backward does not need it, and yet it lives as long as the graph.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Linear8bit) -> torch.Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        if ctx.needs_input_grad[0]:
            ctx.kept = x
        rows = x.reshape(-1, layer.in_features).to(torch.float16)
        maxima = rows.new_empty(rows.shape[0], dtype=torch.float32)
        packed = torch.empty_like(rows, dtype=torch.int8)
        magnitudes = rows.abs()
        outliers = magnitudes >= 6.0
        del magnitudes, outliers, rows
        product = packed.new_empty((packed.shape[0], layer.out_features), dtype=torch.int32)
        output = torch.empty_like(product, dtype=torch.float16)
        if layer.bias is not None:
            output.add_(layer.bias.to(torch.float16))
        result = output.to(x.dtype)
        del product, maxima
        return result.view(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        flat = grad.reshape(-1, ctx.layer.out_features)
        weight = ctx.layer.weight.to(ctx.dtype).mul_(ctx.layer.SCB.unsqueeze(1).mul(1.0 / 127.0))
        return torch.matmul(flat, weight).view(ctx.shape).to(ctx.dtype), None


def _dtype_of(part: Part) -> torch.dtype:
    return _TORCH[part.dtype.name]


def quantize(model: nn.Module, load_in: str, dtype: torch.dtype) -> list[str]:
    """Replace every linear layer but the output head, in place, as transformers does when it loads; returns their paths.

    Args:
        dtype: what the weights are dequantized to (``bnb_4bit_compute_dtype``).
    """
    kind: Any = Linear8bit if load_in == "int8" else Linear4bit
    kept = _kept(model)
    replaced = []
    for path, module in list(model.named_modules()):
        sizes = _linear_sizes(module)
        if sizes is None or id(module) in kept:
            continue
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, kind(module, dtype, *sizes, load_in))
        replaced.append(path)
    return replaced


def _kept(model: nn.Module) -> set[int]:
    """Ids of the modules that transformers leaves alone (quantizers/base.py, get_keys_to_not_convert): the head, ties, the last one."""
    find = getattr(model, "get_output_embeddings", None)
    kept = [find() if find is not None else None]
    names = [name for name, _ in model.named_parameters()]
    if len(names) > 1 and hasattr(model, "config"):
        kept.append(model.get_submodule(names[-1].rpartition(".")[0]))
    return {id(module) for module in kept if module is not None}


def _linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, GPT-2's ``Conv1D`` included; None for others."""
    if type(module) is nn.Linear:
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and module.weight.dim() == 2:
        return module.weight.shape[0], module.weight.shape[1]
    return None
