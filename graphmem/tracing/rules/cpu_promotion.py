"""Operands that the CPU converts before it computes: Python numbers, and tensors of another dtype.

A GPU kernel converts while it reads, so it has none of these. On the CPU ``TensorIterator`` first copies every operand to the common
dtype (aten/src/ATen/TensorIterator.cpp, compute_types), and a Python number is a tensor of 8 bytes before that.
"""

from __future__ import annotations

from typing import Any

import torch

from graphmem.tracing.rules.registry import Free, OpCall, Out, Scratch, rule

_SOURCE = "aten/src/ATen/TensorIterator.cpp, TensorIteratorBase::compute_types; aten/src/ATen/ScalarOps.h, wrapped_scalar_tensor"
_NUMBERS = (bool, int, float, complex)
_Program = list[int | Out | Free]

_ARITHMETIC = ("add", "sub", "mul", "remainder", "fmod")
_DIVISION = ("div",)
_BITS = ("bitwise_and", "bitwise_or", "bitwise_xor", "__lshift__", "__rshift__")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
#: Their result is floating point whatever their operands are.
_FLOATING = (
    "sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "tanh", "sigmoid", "reciprocal", "erf", "erfc", "lgamma", "digamma",
)  # fmt: skip


def _names(operators: tuple[str, ...], overload: str, inplace: bool = True) -> list[str]:
    names = [f"aten.{name}.{overload}" for name in operators]
    return names + [f"aten.{name}_.{overload}" for name in operators if inplace]


def number_bytes(number: Any) -> int:
    """The tensor that a Python number becomes: float64, int64, complex128 or bool."""
    return 1 if isinstance(number, bool) else 16 if isinstance(number, complex) else 8


def number_dtype(number: Any) -> torch.dtype:
    """The dtype of that tensor."""
    if isinstance(number, bool):
        return torch.bool
    return (
        torch.int64 if isinstance(number, int) else torch.complex128 if isinstance(number, complex) else torch.float64
    )


def converted(operand: Any, dtype: torch.dtype) -> int:
    """Bytes of an operand's copy in the common dtype, 0 where it has that dtype already."""
    if isinstance(operand, torch.Tensor):
        return 0 if operand.dtype == dtype else operand.numel() * dtype.itemsize
    return 0 if number_dtype(operand) == dtype else dtype.itemsize


def _floating(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.get_default_dtype()


def _scratch(program: _Program) -> Scratch | None:
    return Scratch(program=tuple(program)) if any(type(step) is int and step for step in program) else None


def _saved_for_backward(call: OpCall) -> bool:
    """Whether the number's tensor outlives the call or is older than it: autograd keeps the factor of a product."""
    return bool(call.node) or (call.args[0].requires_grad and torch.is_grad_enabled())


@rule(
    "scratch", *_names((*_ARITHMETIC, "maximum", "minimum", *_BITS), "Tensor"), *_names(_DIVISION, "Tensor_mode"),
    *_names(_COMPARISONS, "Tensor"), *_names(_DIVISION, "Tensor"), *_names(("floor_divide", "atan2", "logical_and", "logical_or",
    "logical_xor", "maximum", "minimum"), "default"), "aten.pow.Tensor_Tensor", device="cpu", source=_SOURCE,
)  # fmt: skip
def binary(call: OpCall) -> Scratch | None:
    """Both operands are brought to the common dtype; a Python number is made a tensor by the Python binding before that."""
    first, second = call.args[0], call.args[1]
    if isinstance(second, torch.Tensor) and first.dtype == second.dtype and second.dtype.is_floating_point:
        return None
    common = torch.result_type(first, second)
    if call.name in ("aten.div.Tensor", "aten.div_.Tensor", "aten.atan2.default"):
        common = _floating(common)
    return _scratch(_binary(call, first, second, common))


def _binary(call: OpCall, first: torch.Tensor, second: Any, common: torch.dtype) -> _Program:
    program: _Program = []
    if isinstance(second, _NUMBERS) and not (call.name in _KEEP_A_FACTOR and _saved_for_backward(call)):
        program.append(number_bytes(second))
    if call.name.split(".")[1].endswith("_"):  # its result has another dtype than the common one: it is computed aside
        program.append(converted(first, common))
    return [*program, converted(first, common), converted(second, common)]


_KEEP_A_FACTOR = ("aten.mul.Tensor", "aten.div.Tensor")


@rule("scratch", *_names((*_ARITHMETIC, *_DIVISION, *_BITS), "Scalar"), "aten.rsub.Scalar", "aten.bitwise_left_shift.Tensor_Scalar",
      "aten.bitwise_right_shift.Tensor_Scalar", device="cpu", source=_SOURCE)  # fmt: skip
def with_number(call: OpCall) -> Scratch | None:
    """The operator itself makes its number a tensor, which is then brought to the common dtype."""
    first, number = call.args[0], call.args[1]
    common = torch.result_type(first, number)
    if ".div" in call.name:
        common = _floating(common)
    program: _Program = [number_bytes(number), converted(first, common), converted(number, common)]
    return Scratch(program=tuple(program))


@rule("scratch", *_names(_COMPARISONS, "Scalar"), device="cpu", source="aten/src/ATen/native/BinaryOps.cpp, "
      "CREATE_COMPARISON_SCALAR_TENSOR_META_FUNC")  # fmt: skip
def compared_with_number(call: OpCall) -> Scratch | None:
    """A comparison's number is a tensor only while the kernel is set up; its copy in the common dtype lives to the end."""
    first, number = call.args[0], call.args[1]
    common = torch.result_type(first, number)
    return Scratch(program=(number_bytes(number), converted(first, common), converted(number, common), Out(), Free(0)))


@rule("scratch", *(f"aten.{name}.default" for name in _FLOATING), device="cpu", source=_SOURCE)
def floating_of_integers(call: OpCall) -> Scratch | None:
    """Integers are converted before a function whose result is floating point."""
    dtype = call.args[0].dtype
    return (
        None if dtype.is_floating_point or dtype.is_complex else Scratch((converted(call.args[0], _floating(dtype)),))
    )


@rule(
    "scratch", "aten.pow.Scalar", device="cpu", source="aten/src/ATen/native/Pow.cpp, TORCH_IMPL_FUNC(pow_Scalar_out)"
)
def power_of_number(call: OpCall) -> Scratch | None:
    """The base becomes a tensor after the result is allocated, unless it is 1."""
    base, exponent = call.args
    if base == 1:
        return None
    common = torch.result_type(base, exponent)
    return Scratch(program=(Out(), number_bytes(base), converted(base, common), converted(exponent, common)))


@rule("scratch", "aten.where.self", device="cpu", source="aten/src/ATen/native/TensorCompare.cpp, where_self_out")
def where(call: OpCall) -> Scratch | None:
    """Both branches are brought to the common dtype."""
    first, second = call.args[1], call.args[2]
    if first.dtype == second.dtype:
        return None
    return Scratch((converted(first, call.result.dtype), converted(second, call.result.dtype)))


@rule(
    "scratch",
    "aten.cat.default",
    device="cpu",
    source="aten/src/ATen/native/TensorShape.cpp, TORCH_IMPL_FUNC(cat_out_cpu)",
)
def cat(call: OpCall) -> Scratch | None:
    """A part of another dtype than the result is copied into its place by way of a tensor of its own dtype."""
    aside = [tensor.nbytes for tensor in call.args[0] if tensor.dtype != call.result.dtype]
    if not aside:
        return None
    return Scratch(program=(Out(), *(step for i, nbytes in enumerate(aside) for step in (nbytes, Free(i)))))
