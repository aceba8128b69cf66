"""What every engine answers with: itemised bytes, whether it fits, and the tables and figures of its report."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphmem.checkpoint import Basis
from graphmem.published import rules
from graphmem.report import Cell, Column, Figure, Report, Row, Section, Table

#: Contexts and numbers of requests that a matrix shows, as far as the model and the engine allow.
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Item:
    """One line of what is needed: bytes, how they are known, and the arithmetic."""

    key: str
    title: str
    nbytes: int
    basis: Basis
    explain: str = ""


@dataclass(frozen=True, repr=False)
class Estimate:
    """What running a model for inference takes on one GPU. Bytes are ints."""

    engine: str
    target: str
    origin: str
    items: tuple[Item, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    #: None where no GPU was named.
    fits: bool | None = None
    #: Bytes left on the GPU; below zero, how much is missing.
    margin: int | None = None

    @property
    def total(self) -> int:
        """Everything itemised, together."""
        return sum(item.nbytes for item in self.items)

    def item(self, key: str) -> Item:
        """The item called ``key`` (``"weights"``, ``"cache"``, ``"activations"``, ``"workspace"``, ``"overhead"``).

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for item in self.items:
            if item.key == key:
                return item
        raise KeyError(f"{key!r}: there are {', '.join(item.key for item in self.items)}")

    def report(self) -> Report:
        """What ``graphmem infer`` prints."""
        section = Section("", self.figures, (_items(self), *self.tables))
        return Report("infer", self.target, self.origin, (section,), self.notes, self.warnings)

    def __getitem__(self, key: str) -> Cell | Table:
        """A figure or table of the report, by key."""
        return self.report()[key]

    def __repr__(self) -> str:
        return repr(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def _items(estimate: Estimate) -> Table:
    columns = (
        Column("item", "Item"), Column("bytes", "Bytes", "bytes"), Column("share", "Share", "share"), Column("basis", "Basis"),
    )  # fmt: skip
    whole = estimate.total or 1
    rows: list[Row] = [(item.title, item.nbytes, round(item.nbytes / whole, 6), item.basis) for item in estimate.items]
    total = ("Total", estimate.total, round(sum(row[2] for row in rows), 12), None)  # type: ignore[misc]
    explain = tuple(f"{item.title}: {item.explain}" for item in estimate.items)
    return Table("items", "What it takes", columns, tuple(rows), "formula", total, (), explain)


def matrix(
    left: Callable[[int, int], int | None], longest: int, most: int, basis: Basis, what: str, notes: Sequence[str] = ()
) -> Table:
    """The context × concurrency table: ``left(context, requests)`` is bytes left, below zero where it does not fit, None where it cannot be.

    Args:
        longest: tokens of the longest context that is allowed.
        most: requests at once that are allowed.
        what: what is left, in words.
    """
    contexts = [tokens for tokens in CONTEXTS if tokens < longest] + [longest]
    fitting: dict[tuple[int, int], int] = {}
    for tokens, count in itertools.product(contexts, [count for count in CONCURRENCY if count <= most]):
        room = left(tokens, count)
        if room is not None and room >= 0:
            fitting[tokens, count] = room
        elif room is not None and count == 1:  # nor does one of a longer context
            break
    requests = [count for count in CONCURRENCY if count == 1 or any(count == other for _, other in fitting)]
    columns = (
        Column("context", "Context", "count"), *(Column(f"requests_{count}", f"× {count}", "bytes") for count in requests),
    )  # fmt: skip
    rows = tuple((tokens, *(fitting.get((tokens, count)) for count in requests)) for tokens in contexts)
    said = (f"{what}; –: they do not fit at once", *notes)
    return Table("matrix", "Left, by context and concurrent requests", columns, rows, basis, None, said)


def rules_of_thumb(parameters: int, bits: float, weights: int, total: int) -> Table:
    """The 1.2 rule beside what was found: as a figure for the weights, and for all that the run takes."""
    says = rules.loaded(parameters, bits)
    columns = (
        Column("about", "About"), Column("says", "P × 4 B / (32/Q) × 1.2", "bytes"), Column("ours", "Here", "bytes"),
        Column("error", "Off by", "share"),
    )  # fmt: skip
    rows: list[Row] = [
        (about, says, ours, round(says / ours - 1, 4) if ours else None)
        for about, ours in (("weights loaded", weights), ("all of it", total))
    ]
    note = f'M = P × 4 B / (32/Q) × 1.2 with P = {parameters:,} and Q = {bits:g} ("GPU memory for AI models"): it knows neither context nor requests'
    return Table("rules", "Rule of thumb", columns, tuple(rows), "formula", None, (note,))


#: (kind, layers, bytes a token, tokens kept, bytes, arithmetic)
CacheRow = tuple[str, int, int, int | None, int | None, str]


def layer_cache_table(rows: Sequence[CacheRow], title: str) -> Table:
    """Cache by kind of layer."""
    columns = (
        Column("kind", "Kind of layer"), Column("layers", "Layers", "count"), Column("bytes_per_token", "A token", "bytes"),
        Column("tokens", "Tokens kept", "count"), Column("bytes", "A request", "bytes"),
    )  # fmt: skip
    shown: list[Row] = [row[:5] for row in rows]
    total: list[Any] = [
        "Total",
        sum(row[1] for row in rows),
        sum(row[2] for row in rows),
        None,
        sum(row[4] or 0 for row in rows),
    ]
    return Table(
        "cache", title, columns, tuple(shown), "formula", tuple(total), (), tuple(f"{row[0]}: {row[5]}" for row in rows)
    )
