"""Context parallelism: ranks share a sequence, and pass keys and values around in a ring, as PyTorch's own `context_parallel` does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from graphmem.errors import GraphmemError, UnsupportedError


def ring(mesh: DeviceMesh) -> AbstractContextManager[None]:
    """Attention goes around the ranks of a mesh, for as long as this lasts. Each has a part from the sequence's head and one from its tail,
    so that causal attention is as much work for all (Brandon et al. 2023)."""
    from torch.distributed.tensor.experimental import context_parallel

    # It shards the buffers that it is given; the rank's inputs are its part already, and this is for the length only.
    buffer = torch.zeros(2 * mesh.size(), device="cpu" if mesh.device_type == "cpu" else "meta")
    length: AbstractContextManager[None] = context_parallel(mesh, buffers=[buffer], buffer_seq_dims=[0])
    return length


def part_of_sequence(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], ranks: int
) -> dict[str, Any]:
    """A rank's part of tokens and labels, with their positions; labels are shifted beforehand, since the next token may be another rank's.

    Raises:
        GraphmemError: the sequence is not divided, or the inputs are not a language model's.
    """
    tokens, labels = kwargs.get("input_ids"), kwargs.get("labels")
    kind = type(module).__name__
    if args or tokens is None or labels is None or not kind.endswith(("ForCausalLM", "LMHeadModel")):
        raise UnsupportedError(
            f"{kind}: context parallelism is run of causal language models of transformers by name; leave --cp out"
        )
    _refuse_what_is_no_ring(module, tokens.shape[1])
    if tokens.shape[1] % (2 * ranks):
        raise GraphmemError(
            f"cp {ranks}: a sequence of {tokens.shape[1]:,} tokens is not divided into {2 * ranks} parts, two a rank"
        )
    length = tokens.shape[1] // ranks
    here = slice(0, length)
    positions = torch.arange(length, device=tokens.device).unsqueeze(0)
    return {
        **kwargs,
        "input_ids": tokens[:, here].contiguous(),
        "labels": labels[:, here].contiguous(),
        "shift_labels": labels[:, here].contiguous(),
        "position_ids": positions,
    }


def _refuse_what_is_no_ring(module: torch.nn.Module, length: int) -> None:
    """PyTorch's ring takes the place of causal `scaled_dot_product_attention` only; every other layer would see its own rank's tokens alone.

    Raises:
        UnsupportedError: the model has such layers, and which.
    """
    config: Any = module.config
    kind, how = type(module).__name__, getattr(config, "_attn_implementation", "sdpa")
    types = getattr(config, "layer_types", None) or ()
    others = sorted({str(one) for one in types} - {"full_attention"})
    if getattr(module, "_is_stateful", False) or "linear_attention" in others:
        raise UnsupportedError(f"{kind}: has states, which PyTorch's context_parallel does not hand on; leave --cp out")
    if how != "sdpa":
        raise UnsupportedError(f"cp: the ring is made of sdpa, not of attention {how!r}; leave --attention out")
    window = getattr(config, "sliding_window", None)
    windowed = bool(others) if types else getattr(config, "use_sliding_window", True)
    if isinstance(window, int) and windowed and length > window:
        raise UnsupportedError(
            f"{kind}: attention within {window:,} tokens is not what PyTorch's ring computes; leave --cp out, or --seq-len {window}"
        )
