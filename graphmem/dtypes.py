"""Storage dtypes: safetensors' names (sized by bits) and GGML's block types (sized by block).

A dtype that is not in these tables is an error that names it. Nothing falls back to 16 bit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """How elements are stored: ``block_elements`` elements take ``block_bytes`` bytes.

    A plain dtype is a block of one element, or the fewest elements that fill whole bytes (F4: two in one byte).
    """

    name: str
    block_elements: int
    block_bytes: int
    floating: bool = True

    @property
    def bits(self) -> float:
        """Bits an element takes, block overhead included (GGML's Q4_0: 4.5)."""
        return self.block_bytes * 8 / self.block_elements

    def nbytes(self, elements: int) -> int:
        """Bytes of ``elements`` elements.

        Raises:
            ValueError: the elements do not fill whole blocks.
        """
        blocks, rest = divmod(elements, self.block_elements)
        if rest:
            raise ValueError(f"{elements} elements of {self.name} do not fill whole blocks of {self.block_elements}")
        return blocks * self.block_bytes

    def __str__(self) -> str:
        return self.name


def _plain(name: str, bits: int, floating: bool = True) -> DType:
    elements = {4: 2, 6: 4}.get(bits, 1)
    return DType(name, elements, elements * bits // 8, floating)


#: safetensors 0.8.0's dtypes, by the spelling its headers use.
SAFETENSORS: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        _plain("BOOL", 8, False),
        _plain("U8", 8, False),
        _plain("I8", 8, False),
        _plain("I16", 16, False),
        _plain("U16", 16, False),
        _plain("I32", 32, False),
        _plain("U32", 32, False),
        _plain("I64", 64, False),
        _plain("U64", 64, False),
        _plain("F4", 4),
        _plain("F6_E2M3", 6),
        _plain("F6_E3M2", 6),
        _plain("F8_E5M2", 8),
        _plain("F8_E4M3", 8),
        _plain("F8_E8M0", 8),
        _plain("F8_E4M3FNUZ", 8),
        _plain("F8_E5M2FNUZ", 8),
        _plain("F16", 16),
        _plain("BF16", 16),
        _plain("F32", 32),
        _plain("F64", 64),
        _plain("C64", 64),
    )
}

# What torch can hold and safetensors cannot spell; reached only through a live module.
_TORCH_ONLY: dict[str, DType] = {"complex128": _plain("C128", 128), "complex32": _plain("C32", 32)}

_TORCH_NAMES: dict[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float": "F32",
    "float64": "F64",
    "double": "F64",
    "complex64": "C64",
}


def from_torch(name: str) -> DType:
    """The dtype torch calls ``name`` (``"torch.bfloat16"`` or ``"bfloat16"``, as a config.json spells it).

    Raises:
        KeyError: torch's dtype is unknown here.
    """
    short = name.removeprefix("torch.")
    return _TORCH_ONLY[short] if short in _TORCH_ONLY else SAFETENSORS[_TORCH_NAMES[short]]


#: GGML tensor types by id (ggml.h, `enum ggml_type`): block elements and block bytes. A test holds this table
#: against the `gguf` package's GGML_QUANT_SIZES, so the base install needs neither gguf nor numpy.
GGML: dict[int, DType] = {
    id: DType(name, elements, size, floating)
    for id, name, elements, size, floating in (
        (0, "F32", 1, 4, True),
        (1, "F16", 1, 2, True),
        (2, "Q4_0", 32, 18, True),
        (3, "Q4_1", 32, 20, True),
        (6, "Q5_0", 32, 22, True),
        (7, "Q5_1", 32, 24, True),
        (8, "Q8_0", 32, 34, True),
        (9, "Q8_1", 32, 40, True),
        (10, "Q2_K", 256, 84, True),
        (11, "Q3_K", 256, 110, True),
        (12, "Q4_K", 256, 144, True),
        (13, "Q5_K", 256, 176, True),
        (14, "Q6_K", 256, 210, True),
        (15, "Q8_K", 256, 292, True),
        (16, "IQ2_XXS", 256, 66, True),
        (17, "IQ2_XS", 256, 74, True),
        (18, "IQ3_XXS", 256, 98, True),
        (19, "IQ1_S", 256, 50, True),
        (20, "IQ4_NL", 32, 18, True),
        (21, "IQ3_S", 256, 110, True),
        (22, "IQ2_S", 256, 82, True),
        (23, "IQ4_XS", 256, 136, True),
        (24, "I8", 1, 1, False),
        (25, "I16", 1, 2, False),
        (26, "I32", 1, 4, False),
        (27, "I64", 1, 8, False),
        (28, "F64", 1, 8, True),
        (29, "IQ1_M", 256, 56, True),
        (30, "BF16", 1, 2, True),
        (34, "TQ1_0", 256, 54, True),
        (35, "TQ2_0", 256, 66, True),
        (39, "MXFP4", 32, 17, True),
        (40, "NVFP4", 64, 36, True),
        (41, "Q1_0", 128, 18, True),
    )
}
