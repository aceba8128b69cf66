"""The compressed tensor table of a catalog entry: ``[pattern, shape, dtype]`` with ranges for repeated numbers.

``model.layers.{0-31}.mlp.down_proj.weight`` stands for 32 tensors; ``experts.{0-7,9}`` lists and ranges mix, several braces multiply.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from graphmem.checkpoint import TensorSpec
from graphmem.dtypes import SAFETENSORS
from graphmem.parameters.layers import consecutive_runs

Row = tuple[str, list[int], str]

_BRACES = re.compile(r"\{([\d,-]+)\}")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def expand(rows: Iterable[Row]) -> Iterator[TensorSpec]:
    """Every tensor of a table."""
    for pattern, shape, dtype in rows:
        pieces = _BRACES.split(pattern)
        literal, ranges = pieces[::2], [_numbers(text) for text in pieces[1::2]]
        for numbers in itertools.product(*ranges):
            name = literal[0] + "".join(f"{number}{text}" for number, text in zip(numbers, literal[1:], strict=True))
            yield TensorSpec(name, tuple(shape), SAFETENSORS[dtype])


def compress(tensors: Iterable[TensorSpec]) -> list[Row]:
    """The shortest table of this form for ``tensors``, in the order they first appear; `expand` undoes it."""
    groups: dict[tuple[str, tuple[int, ...], str], list[tuple[int, ...]]] = {}
    for tensor in tensors:
        template = _NUMBER.sub("{}", tensor.name)
        numbers = tuple(int(found) for found in _NUMBER.findall(tensor.name))
        groups.setdefault((template, tensor.shape, tensor.dtype.name), []).append(numbers)
    return [
        (template.format(*braces), list(shape), dtype)
        for (template, shape, dtype), numbers in groups.items()
        for braces in _factor(sorted(numbers))
    ]


def _factor(tuples: list[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """Tuples of numbers as products of sets: equal tails are shared by all heads that have them."""
    if not tuples or not tuples[0]:
        return [()]
    tails: dict[int, list[tuple[int, ...]]] = {}
    for head, *tail in tuples:
        tails.setdefault(head, []).append(tuple(tail))
    heads: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for head, rest in tails.items():
        heads.setdefault(tuple(rest), []).append(head)
    return [(_spell(numbers), *more) for rest, numbers in heads.items() for more in _factor(list(rest))]


def _spell(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs = consecutive_runs(numbers)
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
