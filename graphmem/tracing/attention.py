"""``--attention eager|sdpa|flash`` for transformers models: which of their attention functions runs."""

from __future__ import annotations

from typing import Any

import torch

from graphmem.errors import GraphmemError
from graphmem.workload import Attention

#: The name under which our stand-in for the flash-attn package is known to transformers, which looks for kernels where a name has
#: "flash" in it.
_FLASH = "graphmem_fused"


def set_attention(model: torch.nn.Module, attention: Attention) -> None:
    """Choose the attention of a transformers model, and of the models inside it.

    Raises:
        GraphmemError: the model has no such choice.
    """
    name = _FLASH if attention == "flash" else attention
    if attention == "flash":
        _register_flash()
    choose = getattr(model, "set_attn_implementation", None)
    try:
        if choose is None:
            raise ValueError("it is no transformers model")
        choose(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise GraphmemError(
            f"--attention {attention}: {type(model).__name__} does not offer it ({str(error).splitlines()[0]})"
        ) from error


def _register_flash() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    AttentionInterface.register(_FLASH, _flash_forward)
    AttentionMaskInterface.register(_FLASH, flash_attention_mask)


def _flash_forward(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, dropout: float = 0.0,
    scaling: float | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """What the flash-attn package allocates: its kernel is PyTorch's flash backend, without a mask, keys and values not repeated."""
    if query.dtype not in (torch.float16, torch.bfloat16) and not torch.is_autocast_enabled("cuda"):
        raise GraphmemError(
            "--attention flash: the flash-attn package takes float16 and bfloat16 only; add --dtype bfloat16 or --autocast bfloat16"
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
        is_causal=bool(causal) and query.shape[2] == key.shape[2],
    )  # fmt: skip
    return output.transpose(1, 2), None
