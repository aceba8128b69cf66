"""The one result type. A command fills figures and tables; every view (terminal, JSON, CSV, …) renders any Report.

A table's cells are plain ints, floats and strings; its columns say what they mean, so that no view knows a command.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from graphmem.checkpoint import Basis

#: JSON carries this. Changes are additive within a version.
SCHEMA_VERSION = 1

Unit = Literal["bytes", "count", "share", "text"]
Cell = int | float | str | None
Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table; ``unit`` decides how a view prints it (bytes → GiB/MiB, share 0..1 → percent)."""

    key: str
    title: str
    unit: Unit = "text"
    #: Print bytes in MiB whatever their size, where rows are to be compared with figures published so.
    in_mib: bool = False
    #: Left out first where a terminal is too narrow for the whole table.
    detail: bool = False


@dataclass(frozen=True, repr=False)
class Table:
    """Rows under typed columns. ``total`` is the sum row; a test holds it against the rows it sums."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    basis: Basis
    total: Row | None = None
    notes: tuple[str, ...] = ()
    #: How each row came about, in words and numbers, parallel to ``rows``; shown by ``--explain``.
    explain: tuple[str, ...] = ()

    def records(self) -> list[dict[str, Cell]]:
        """The rows as dicts by column key, for pandas, JSON and people."""
        keys = [column.key for column in self.columns]
        return [dict(zip(keys, row, strict=True)) for row in self.rows]

    def __iter__(self) -> Iterator[dict[str, Cell]]:
        return iter(self.records())

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Table {self.key!r}: {len(self.rows)} rows of {', '.join(column.key for column in self.columns)}>"


def sum_row(columns: Sequence[Column], rows: Sequence[Row], label: str = "Total") -> Row:
    """The sum of every count, bytes and share column; text columns are blank but for the first."""
    total: list[Cell] = []
    for position, column in enumerate(columns):
        if column.unit == "text":
            total.append(label if position == 0 else None)
        else:
            values = [value for row in rows if isinstance(value := row[position], int | float)]
            # Shares are quotients of the same whole; their sum must not show the rounding of floats.
            total.append(round(math.fsum(values), 12) if column.unit == "share" else sum(values))
    return tuple(total)


@dataclass(frozen=True)
class Figure:
    """One number with its basis; ``explain`` is the arithmetic behind it."""

    key: str
    title: str
    value: Cell
    unit: Unit
    basis: Basis
    explain: str = ""


@dataclass(frozen=True)
class Section:
    """The part of a report about one model: all of it for a plain checkpoint, a component of a pipeline otherwise."""

    name: str
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()

    def __getitem__(self, key: str) -> Cell | Table:
        """A figure's value or a table, by key."""
        for figure in self.figures:
            if figure.key == key:
                return figure.value
        for table in self.tables:
            if table.key == key:
                return table
        known = [f.key for f in self.figures] + [t.key for t in self.tables]
        raise KeyError(f"{key!r}: section {self.name!r} has {', '.join(known)}")


@dataclass(frozen=True, repr=False)
class Report:
    """What a command found. ``origin`` is the first line people see: where the answer comes from."""

    command: str
    target: str
    origin: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Cell | Table:
        """``report["parameters"]`` → a figure's value, ``report["components"]`` → a table; of the first section.

        A pipeline's first section is ``all``; `section` gives the others.
        """
        try:
            return self.sections[0][key]
        except KeyError as error:
            others = ", ".join(repr(section.name) for section in self.sections[1:])
            raise KeyError(error.args[0] + (f"; report.section(name) has {others}" if others else "")) from None

    def section(self, name: str) -> Section:
        """The section called ``name`` (``"unet"``).

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for section in self.sections:
            if section.name == name:
                return section
        raise KeyError(f"{name!r}: the sections are {', '.join(repr(s.name) for s in self.sections)}")

    def _repr_html_(self) -> str:
        from graphmem.views.html import render

        return render(self)

    def __repr__(self) -> str:
        """The printed report, so that a notebook or a prompt shows it."""
        from graphmem.views.terminal import render

        return render(self, width=120, color=False)
