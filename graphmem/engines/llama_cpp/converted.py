"""A safetensors checkpoint as llama.cpp's converter and ``llama-quantize --pure`` would store it."""

from __future__ import annotations

from dataclasses import replace

from graphmem.checkpoint import ModelSpec, TensorSpec
from graphmem.dtypes import GGML, DType
from graphmem.errors import GraphmemError, nearest
from graphmem.parameters.roles import NOT_TEXT, Component

_TYPES = {dtype.name: dtype for dtype in GGML.values() if dtype.floating}


def ggml_type(name: str) -> DType:
    """The block type called ``name`` (``"q4_0"``, ``"Q6_K"``).

    Raises:
        GraphmemError: there is none; mixtures such as Q4_K_M are said to be ones.
    """
    found = _TYPES.get(name.upper())
    if found is None:
        if name.upper().rpartition("_")[2] in ("S", "M", "L", "XL"):
            raise GraphmemError(
                f"quantization {name!r}: a mixture of types that differs by model; give the GGUF file itself (owner/name/file.gguf), or one type: Q4_K"
            )
        raise GraphmemError(f"quantization {name!r}: {nearest(name, _TYPES)}")
    return found


def as_gguf(spec: ModelSpec, roles: dict[str, Component], quantization: str | None) -> ModelSpec:
    """The language model's tensors, every matrix in one type and vectors in fp32; None: in 16 bit, as converted.

    Encoders and projectors are left out: the converter writes them to a file of their own (mmproj).

    Raises:
        GraphmemError: there is no such type.
    """
    wanted = ggml_type(quantization) if quantization is not None else None

    def stored(tensor: TensorSpec) -> TensorSpec:
        if not tensor.dtype.floating:
            return tensor
        if len(tensor.shape) < 2 or roles[tensor.name] == "norm":
            return replace(tensor, dtype=_TYPES["F32"])
        if wanted is None:
            return replace(tensor, dtype=_TYPES["BF16" if tensor.dtype.name == "BF16" else "F16"])
        return replace(tensor, dtype=wanted if tensor.shape[-1] % wanted.block_elements == 0 else _TYPES["F16"])

    return replace(spec, tensors=tuple(stored(tensor) for tensor in spec.tensors if roles[tensor.name] not in NOT_TEXT))
