"""Linear layers whose products run in fp8: what Transformer Engine and torchao cast, cache and save.

torchao (0.18, float8/float8_linear.py, dynamic tensorwise scaling, its casts fused by torch.compile as it asks for): input and weight are
cast for each product and saved as they were. Transformer Engine (2.20, pytorch/module/linear.py): the weight is cast in every forward; fp8
weight and fp8 input are what is saved, each the other way round too where the GPU has no fp8 products of that layout (Ada, Hopper).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphmem.errors import GraphmemError
from graphmem.training.recipes import Fp8

_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
#: fp8 products need sides that are multiples of 16 (both libraries).
_MULTIPLE = 16


def in_fp8(model: nn.Module, style: Fp8) -> str:
    """Make every linear layer but the output head compute in fp8, in place; returns what was done, in words.

    Raises:
        GraphmemError: no layer's sides allow it.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    mixin, done = (_Torchao if style == "torchao" else _TransformerEngine), 0
    for module in list(model.modules()):
        if (
            type(module) is nn.Linear
            and module is not head
            and not any(side % _MULTIPLE for side in module.weight.shape)
        ):
            module.__class__ = _MIXED[mixin]
            done += 1
    if not done:
        raise GraphmemError(
            f"recipe fp8: {type(model).__name__} has no linear layer with sides that are multiples of {_MULTIPLE}"
        )
    return f"{done} linear layers in fp8 ({'torchao' if style == 'torchao' else 'Transformer Engine'})"


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``a @ b`` of two fp8 matrices, ``b`` column by column, in ``dtype``."""
    scale = a.new_ones((), dtype=torch.float32)
    return torch._scaled_mm(a, b, scale, scale, out_dtype=dtype)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _columns(tensor: torch.Tensor) -> torch.Tensor:
    """The same matrix as its other layout holds it: fp8 products read their second factor column by column."""
    return tensor.as_strided(tensor.shape, (1, tensor.shape[0]))


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in fp8, one byte an element, with a scale of 4 bytes that lives as long."""
    return torch.empty_like(tensor, dtype=dtype)


class _TorchaoProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        inputs, weights = _cast(x, _E4M3), _cast(weight, _E4M3)
        return _product(_rows(inputs), weights.t(), x.dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        grads, weights = _cast(grad, _E5M2), _cast(weight, _E4M3)
        grad_x = _product(_rows(grads), _columns(weights), x.dtype).view(x.shape)
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        again, inputs = _cast(grad, _E5M2), _cast(x, _E4M3)
        return grad_x, _product(_rows(again).t().contiguous(), _columns(_rows(inputs)), weight.dtype)


class _TeProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, both_ways: bool) -> torch.Tensor:
        inputs, other_way = _cast(x, _E4M3), _cast(x, _E4M3) if weight.requires_grad and both_ways else None
        weights = [_cast(weight, _E4M3) for _ in range(2 if both_ways else 1)]
        ctx.shape, ctx.dtype, ctx.both_ways = x.shape, dtype, both_ways
        # Of the input, what the weight's gradient needs stays: the other way round, where there are two.
        ctx.save_for_backward(*([other_way if both_ways else inputs] if weight.requires_grad else []), weight, *weights)
        return _product(_rows(inputs), weights[0].t(), dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        needs_weight = ctx.needs_input_grad[1]
        saved = ctx.saved_tensors
        weight = saved[1 if needs_weight else 0]
        grads = [_cast(grad, _E5M2) for _ in range(2 if ctx.both_ways and needs_weight else 1)]
        grad_x = _product(_rows(grads[0]), _columns(saved[-1]), ctx.dtype).view(ctx.shape)
        if not needs_weight:
            return grad_x, None, None, None
        across = _rows(grads[-1])
        across = across.as_strided(across.t().shape, (across.shape[0], 1))
        grad_weight = _product(across, _columns(_rows(saved[0])), ctx.dtype)
        return grad_x, grad_weight.to(weight.dtype), None, None


class _Torchao:
    """Mixed in before ``nn.Linear``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x = input.to(torch.get_autocast_dtype("cuda")) if torch.is_autocast_enabled("cuda") else input
        result = _TorchaoProduct.apply(x, self.weight.to(x.dtype))  # type: ignore[attr-defined]
        return result if self.bias is None else result + self.bias.to(x.dtype)  # type: ignore[attr-defined]


class _TransformerEngine:
    """Mixed in before ``nn.Linear``. Activations take autocast's dtype, as TE's do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else input.dtype
        major = torch.cuda.get_device_capability()[0]
        result = _TeProduct.apply(input.to(dtype), self.weight, dtype, major not in (10, 11))  # type: ignore[attr-defined]
        return result if self.bias is None else result + self.bias.to(dtype)  # type: ignore[attr-defined]


_MIXED = {
    mixin: type("Linear", (mixin, nn.Linear), {"__module__": nn.Linear.__module__})
    for mixin in (_Torchao, _TransformerEngine)
}
