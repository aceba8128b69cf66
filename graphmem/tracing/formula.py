"""A model's stored activations as a polynomial of its dimensions, fitted exactly to traces.

Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models", section 4.1) count 34·s·b·h + 5·a·s²·b bytes
for one transformer layer by hand; this finds such a formula for any model from its own code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from graphmem.errors import GraphmemError
from graphmem.tracing.trace import Trace


@dataclass(frozen=True)
class Formula:
    """A polynomial with rational coefficients. ``str()`` writes it as papers do: ``34·s·b·h + 5·a·s²·b``."""

    #: The variables, in the order of the exponents.
    variables: tuple[str, ...]
    #: Exponents of each variable → coefficient; terms that are zero are left out.
    terms: Mapping[tuple[int, ...], Fraction]

    def __call__(self, **sizes: int) -> int | Fraction:
        """The value at these sizes; an int where it is whole."""
        value = sum(
            (
                c * math.prod(sizes[v] ** e for v, e in zip(self.variables, powers, strict=True))
                for powers, c in self.terms.items()
            ),
            Fraction(0),
        )
        return int(value) if value.denominator == 1 else value

    def __str__(self) -> str:
        written = [_term(self.variables, powers, coefficient) for powers, coefficient in self._ordered()]
        return " + ".join(written).replace("+ -", "− ") or "0"

    def _ordered(self) -> list[tuple[tuple[int, ...], Fraction]]:
        return sorted(self.terms.items(), key=lambda item: (-sum(item[0]), [-e for e in item[0]]))


_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _term(variables: tuple[str, ...], powers: tuple[int, ...], coefficient: Fraction) -> str:
    factors = [
        v + (str(e).translate(_SUPERSCRIPTS) if e > 1 else "") for v, e in zip(variables, powers, strict=True) if e
    ]
    if not factors:
        return str(coefficient)
    return "·".join(factors if coefficient == 1 else [str(coefficient), *factors])


def stored_activations(trace: Trace) -> int:
    """Bytes of activations that autograd keeps for backward, inputs among them, as asked for (not rounded); weights are not counted."""
    kept = {trace.values[value].block for op in trace.ops for value in op.saved}
    return sum(trace.blocks[b].nbytes for b in kept if b is not None and trace.blocks[b].kind == "activation")


def fit_formula(
    traced: Callable[..., Trace],
    sizes: Mapping[str, Sequence[int]],
    measure: Callable[[Trace], int] = stored_activations,
) -> Formula:
    """The polynomial that ``measure`` follows over all combinations of ``sizes``.

    Args:
        traced: called with one size for each name (``traced(s=128, b=2, h=64, a=4)``), returns a Trace.
        sizes: the sizes of each variable to trace. A polynomial of degree n in a variable takes n + 1 of them; give one more and
            it is a check: a formula that does not hold everywhere raises.
        measure: what to fit, in bytes; by default `stored_activations`.

    Returns:
        A Formula, exact at every traced point.

    Raises:
        GraphmemError: no polynomial of that degree gives all the values.
    """
    names = tuple(sizes)
    if not names or any(len(set(values)) < 2 for values in sizes.values()):
        raise GraphmemError("fit_formula needs two or more different sizes of every variable")
    points = list(itertools.product(*(sorted(set(sizes[name])) for name in names)))
    table = {point: Fraction(measure(traced(**dict(zip(names, point, strict=True))))) for point in points}
    return Formula(names, {powers: c for powers, c in _interpolated(names, sizes, table).items() if c})


def _interpolated(
    names: tuple[str, ...], sizes: Mapping[str, Sequence[int]], table: dict[tuple[int, ...], Fraction]
) -> dict[tuple[int, ...], Fraction]:
    """Newton's divided differences, one variable after the other; exact in rationals."""
    values = table
    for axis, name in enumerate(names):
        xs = sorted(set(sizes[name]))
        lines = dict.fromkeys(_at(key, axis, 0) for key in values)
        changed: dict[tuple[int, ...], Fraction] = {}
        for line in lines:
            ys = [values[_at(line, axis, x)] for x in xs]
            for power, coefficient in enumerate(_polynomial(xs, ys)):
                changed[_at(line, axis, power)] = coefficient
        if any(c for key, c in changed.items() if key[axis] == len(xs) - 1) and len(xs) > 2:
            raise GraphmemError(
                f"no polynomial of degree below {len(xs) - 1} in {name} gives these values; trace more sizes of {name}"
            )
        values = changed
    return values


def _at(key: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*key[:axis], value, *key[axis + 1 :])


def _polynomial(xs: Sequence[int], ys: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest power first, of the polynomial through the points."""
    divided = list(ys)
    for level in range(1, len(xs)):
        for i in range(len(xs) - 1, level - 1, -1):
            divided[i] = (divided[i] - divided[i - 1]) / (xs[i] - xs[i - level])
    coefficients = [Fraction(0)] * len(xs)
    for i in range(len(xs) - 1, -1, -1):
        shifted = [Fraction(0), *coefficients[:-1]]
        coefficients = [a - xs[i] * b for a, b in zip(shifted, coefficients, strict=True)]
        coefficients[0] += divided[i]
    return coefficients
