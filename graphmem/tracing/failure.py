"""A step that fails says where: the module, the operation, the line of Python, and what to type next."""

from __future__ import annotations

from graphmem.errors import GraphmemError, UnsupportedError

_NO_KERNEL = ("'Meta' backend", "for 'Meta'", "meta kernel", "has no meta", "no fake impl")


def _where(module: str, op: str, line: str) -> str:
    parts = [f"in {module}" if module else "", f"at {op}" if op else "", f"({line})" if line else ""]
    return " ".join(part for part in parts if part)


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, with its type."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


class StepError(GraphmemError):
    """The traced code raised; ``__cause__`` is its own exception."""


def operator_failed(error: Exception, op: str, module: str, line: str) -> Exception:
    """The error to raise for an exception out of one operation; errors that say where already stay as they are."""
    if isinstance(error, GraphmemError):
        return error
    if isinstance(error, NotImplementedError) or any(mark in str(error) for mark in _NO_KERNEL):
        return UnsupportedError(
            f"{_where(module, op, line)}: this operator has no kernel for shapes alone; give it one with "
            f"torch.library.register_fake, or a rule: graphmem.rule('output', '{op}')"
        )
    if (
        "is not on the expected device meta" in str(error)
        or "on device cpu is not on" in str(error)
        or "not on the expected device cpu" in str(error)
    ):
        return StepError(
            f"{_where(module, op, line)}: a tensor on the CPU meets one on the device; pass it as an input, or make it with "
            "device=output.device"
        )
    return StepError(f"{_where(module, op, line)}: {first_line(error)}")


def step_failed(error: Exception, phase: str, module: str, line: str) -> StepError:
    """The error to raise for an exception out of the user's Python between operations."""
    hint = ""
    if isinstance(error, TypeError) and "missing" in str(error) and "positional argument" in str(error):
        hint = '; give inputs after the model, or on the command line with --input "int64[1,2048]"'
    where = _where(module, "", line) if module else f"in {phase} ({line})" if line else f"in {phase}"
    return StepError(f"{where}: {first_line(error)}{hint}")
