"""transformers' quantized caches, with their own layer classes; what quanto and HQQ store is laid out here, so that neither need be installed."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.errors import GraphmemError, nearest

#: The name of a cache → bits of an element.
BITS = {"quanto-int4": 4, "quanto-int2": 2, "hqq-int8": 8, "hqq-int4": 4, "hqq-int2": 2}
NAMES = ("fp8", *BITS)


def quantized_cache(config: Any, name: str) -> Any:
    """An empty cache of every layer of ``config``.

    Raises:
        GraphmemError: there is no such cache, or layers that keep something else than all keys and values.
    """
    from transformers import cache_utils

    if name not in NAMES:
        raise GraphmemError(
            f"cache {name!r}: {nearest(name, ('dynamic', 'static', 'offloaded', 'offloaded-static', *NAMES))}"
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        others = ", ".join(sorted(kinds - {"full_attention"}))
        raise GraphmemError(
            f"cache {name!r}: transformers quantizes full attention only; this model has layers of {others}"
        )
    if name == "fp8":
        make: Any = cache_utils.Fp8QuantizedLayer
    else:
        make = _packed_layer(cache_utils.QuantizedLayer, BITS[name])
    return cache_utils.Cache(layers=[make() for _ in range(config.num_hidden_layers)])


def _packed_layer(base: type, bits: int) -> Any:
    """A layer of groups of 64 elements: packed into bytes, with a scale and a zero point in the model's dtype for each group."""

    class PackedLayer(base):
        def __init__(self) -> None:
            super().__init__(nbits=bits)

        def _quantize(self, tensor: torch.Tensor, axis: int) -> Any:
            groups = tensor.reshape(-1, self.q_group_size)
            low = groups.amin(dim=1, keepdim=True)
            scale = (groups.amax(dim=1, keepdim=True) - low) / (2**bits - 1)
            codes = ((groups - low) / scale).to(torch.uint8)
            packed = codes.view(-1)[:: 8 // bits].clone() if bits < 8 else codes
            return packed, scale, low, tensor.shape

        def _dequantize(self, q_tensor: Any) -> torch.Tensor:
            packed, scale, low, shape = q_tensor
            codes = packed.repeat_interleave(8 // bits, 0) if bits < 8 else packed
            return (codes.view(-1, self.q_group_size).to(scale.dtype) * scale + low).view(shape)

    return PackedLayer
