"""Saved activations in host memory: what autograd keeps for backward leaves the device and comes back when it is needed.

As TRL's OffloadActivations has it: parameters, views of them and what is smaller than 1,024 bytes stay (torchtune's moves views of
parameters too, PyTorch's own ``torch.autograd.graph.save_on_cpu`` everything). Copies are taken to be done at once: the few
tensors that a second stream holds a moment longer are not counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

#: Smaller tensors are not worth the trip (``min_offload_size`` of both).
SMALLEST = 1024


@dataclass(frozen=True)
class InHostMemory:
    """A saved tensor's copy on the host. Where the step is traced there is no data, and its geometry is all there is."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    data: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        count = 1
        for length in self.size:
            count *= length
        return count * self.dtype.itemsize


def _pack(tensor: torch.Tensor) -> Any:
    stays = isinstance(tensor, torch.nn.Parameter) or (
        tensor._is_view() and isinstance(tensor._base, torch.nn.Parameter)
    )
    if stays or tensor.numel() * tensor.element_size() < SMALLEST:
        return tensor
    with torch._C.DisableTorchFunction():  # a traced tensor says it is elsewhere, to whoever asks above
        data = None if tensor.is_meta else tensor.to("cpu")
        return InHostMemory(tuple(tensor.size()), tensor.stride(), tensor.dtype, data), tensor.device


def _unpack(packed: Any) -> torch.Tensor:
    if isinstance(packed, torch.Tensor):
        return packed
    held, device = packed
    if held.data is not None:
        return held.data.to(device, non_blocking=True)
    with torch._C.DisableTorchFunction():
        return torch.empty_strided(held.size, held.stride, dtype=held.dtype, device=device)


@contextlib.contextmanager
def offloaded() -> Iterator[None]:
    """Autograd saves to host memory, for as long as this lasts."""
    with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
        yield
