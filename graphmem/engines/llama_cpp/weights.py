"""Where llama.cpp puts a model's tensors: the input in host memory, layers and output on the GPU as far as ``-ngl`` reaches.

Worked out once for a model: what fits is asked for many settings (llama-model.cpp; ggml-cuda.cu for padding).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from graphmem.inspection.model import Model
from graphmem.parameters.roles import Component
from graphmem.parameters.stored import StoredTensor
from graphmem.units import round_up

#: CUDA's tensors are aligned to this, and rows of quantized ones padded to as many values (ggml-cuda.cu, MATRIX_ROW_PADDING).
ALIGNMENT, ROW = 128, 512
_BLOCK = re.compile(r"(?:^|\.)(?:blk|layers|h)\.(\d+)\.")
_EXPERT = re.compile(r"(?<=experts)\.\d+(?=\.)")


@dataclass(frozen=True)
class Weights:
    """A model's tensors: (bytes on a GPU, bytes in host memory) of each part, wherever it goes."""

    #: How many layers; the output is one more.
    count: int
    #: Embeddings, which stay in host memory; on a GPU lies the copy that serves as a tied head, if there is one.
    embeddings: tuple[int, int]
    layers: Mapping[int, tuple[int, int]]
    experts: Mapping[int, tuple[int, int]]
    #: Bytes of the largest tensor of a layer, by role; experts stored one by one count together.
    largest: Mapping[Component, int]
    #: Whether queries, keys and values are one product (Phi-3).
    joined: bool

    def placed(self, first_on_gpu: int, experts_in_host: bool) -> tuple[int, int]:
        """(bytes on the GPU, bytes in host memory) with the layers from ``first_on_gpu`` on the GPU."""
        gpu, host = self.embeddings[0] if first_on_gpu <= self.count else 0, self.embeddings[1]
        for parts, stays in ((self.layers, False), (self.experts, experts_in_host)):
            for number, (on_gpu, in_host) in parts.items():
                if number >= first_on_gpu and not stays:
                    gpu += on_gpu
                else:
                    host += in_host
        return gpu, host


def weights_of(model: Model, layers: int) -> Weights:
    """The tensors of a model of so many layers."""
    embeddings, tied = 0, 0
    parts: dict[bool, dict[int, tuple[int, int]]] = {False: {}, True: {}}
    sizes: dict[tuple[Component, str], int] = {}
    untied = "head" in model.roles.values()
    for tensor in model.tensors:
        name, role, nbytes = tensor.spec.name, model.roles[tensor.spec.name], tensor.spec.nbytes
        if tensor.kind == "buffer" and not name.startswith("rope_freqs"):
            continue
        block = _BLOCK.search(name)
        if block is None and role == "embedding":
            embeddings += nbytes
            tied += round_up(nbytes, ALIGNMENT) if len(tensor.spec.shape) == 2 and not untied else 0
            continue
        place = int(block[1]) if block else layers
        part = parts["_exps" in name or "experts" in name]
        gpu, host = part.get(place, (0, 0))
        part[place] = gpu + round_up(nbytes + _row_padding(tensor), ALIGNMENT), host + nbytes
        if block:
            stacked = role, _EXPERT.sub("", name)
            sizes[stacked] = sizes.get(stacked, 0) + nbytes
    largest: dict[Component, int] = {}
    for (role, _), nbytes in sizes.items():
        largest[role] = max(largest.get(role, 0), nbytes)
    joined = any(tensor.spec.name.endswith(("attn_qkv.weight", "qkv_proj.weight")) for tensor in model.tensors)
    return Weights(layers, (tied, embeddings), parts[False], parts[True], largest, joined)


def _row_padding(tensor: StoredTensor) -> int:
    spec = tensor.spec
    width = spec.shape[-1] if spec.shape else 0
    return 0 if spec.dtype.block_elements == 1 or width % ROW == 0 else spec.dtype.nbytes(ROW - width % ROW)
