"""The fast paths that ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` take in eval mode: single operators, taken apart here.

Source: ATen/native/transformers/cuda/attention.cu (native_multi_head_attention_cuda) and transformers/transformer.cpp
(transformer_encoder_layer_forward), as of 2.7.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from graphmem.tracing.rules.cuda_attention import attention
from graphmem.tracing.rules.registry import rule

aten = torch.ops.aten


def _attention(
    call: Any, x: torch.Tensor, heads: int, tensors: tuple[torch.Tensor, ...], mask: torch.Tensor | None
) -> torch.Tensor:
    """Packed projection, fused attention, output projection. Weights that are averaged over heads are not asked for here."""
    in_weight, in_bias, out_weight, out_bias = tensors
    batch, length, width = x.shape
    q, k, v = (
        part.view(batch, length, heads, width // heads).transpose(1, 2)
        for part in functional.linear(x, in_weight, in_bias).chunk(3, -1)
    )
    if mask is not None:
        mask = (
            mask.logical_not()[:, None, None, :] if mask.dim() == 2 and mask.shape[0] == batch else mask.logical_not()
        )
    told = type(call)(functional.scaled_dot_product_attention, (q, k, v, mask), {}, call.device)
    mixed = attention(told).transpose(1, 2).reshape(batch, length, width)
    return functional.linear(mixed, out_weight, out_bias)


@rule("call", torch._native_multi_head_attention, device="cuda", source="transformers/cuda/attention.cu")
def multi_head_attention(call: Any) -> Any:
    """On meta it is one operator without an inside; what its parts allocate is restored where attention weights are not asked for."""
    query, key, value, _, heads, *tensors, mask, need_weights = call.args[:11]
    if need_weights or query is not key or key is not value or query.dim() != 3:
        return NotImplemented
    return _attention(call, query, heads, tuple(tensors), mask), None


@rule("call", torch._transformer_encoder_layer_fwd, device="cuda", source="transformers/transformer.cpp")
def encoder_layer(call: Any) -> Any:
    """On meta it is one operator without an inside."""
    source, _, heads = call.args[:3]
    attention_tensors = tuple(call.args[3:7])
    gelu, norm_first, epsilon, scale1, shift1, scale2, shift2, up, up_bias, down, down_bias = call.args[7:18]
    mask = call.args[18] if len(call.args) > 18 else None
    width = (source.shape[-1],)
    x = functional.layer_norm(source, width, scale1, shift1, epsilon) if norm_first else source
    x = _attention(call, x, heads, attention_tensors, mask).add_(source)
    if not norm_first:
        x = functional.layer_norm(x, width, scale1, shift1, epsilon)
    residual = x
    if norm_first:
        x = functional.layer_norm(x, width, scale2, shift2, epsilon)
    rows = x.reshape(-1, width[0])
    hidden = aten._addmm_activation(up_bias, rows, up.t(), use_gelu=gelu)
    x = torch.addmm(down_bias, hidden, down.t()).view(x.shape).add_(residual)
    return x if norm_first else functional.layer_norm(x, width, scale2, shift2, epsilon)
