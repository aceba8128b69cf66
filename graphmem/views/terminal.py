"""A Report as text for a terminal, a pipe or a .txt file."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from graphmem.report import Report, Row, Section, Table
from graphmem.views.cells import cell_text, figure_text


def render(report: Report, *, width: int = 100, color: bool = False, explain: bool = False) -> str:
    """The report in ``width`` columns. Tables too wide for it become one ``column: value`` list a row, never cut numbers."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
    )
    console.print(Text(report.target, style="bold").append(f": {report.origin}", style="not bold dim"), soft_wrap=True)
    for section in report.sections:
        _section(console, section, explain)
    for note in report.notes:
        console.print(Text(f"Note: {note}", style="dim"), soft_wrap=True)
    for warning in report.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"), soft_wrap=True)
    return out.getvalue()


def _section(console: Console, section: Section, explain: bool) -> None:
    console.print()
    if section.name:
        console.rule(Text(section.name, style="bold"), align="left", characters="─")
    for figure in section.figures:
        line = Text(f"{figure.title}: ", style="bold")
        line.append(figure_text(figure), style="none")
        line.append(f"  [{figure.basis}]", style="dim")
        console.print(line, soft_wrap=True)
        if explain and figure.explain:
            console.print(Text(f"    = {figure.explain}", style="dim"), soft_wrap=True)
    for table in section.tables:
        _table(console, table, explain)


def _table(console: Console, table: Table, explain: bool) -> None:
    console.print()
    title = Text(table.title, style="bold")
    title.append(f"  [{table.basis}]", style="dim")
    console.print(title)
    if table.rows:
        grid = _fitting_grid(table, console) or _fitting_grid(_without_detail(table), console)
        if grid is not None:
            console.print(grid)
        else:
            _list(console, table)
    for note in table.notes:
        console.print(Text(f"  {note}", style="dim"), soft_wrap=True)
    if explain:
        for line in table.explain:
            console.print(Text(f"    = {line}", style="dim"), soft_wrap=True)


def _fitting_grid(table: Table, console: Console) -> Grid | None:
    """The table's grid, if it can be printed with every number whole and text folded to no less than sixteen columns."""
    if _least_width(table) > console.width:
        return None
    grid = _grid(table)
    return grid if Measurement.get(console, console.options, grid).minimum <= console.width else None


def _without_detail(table: Table) -> Table:
    keep = [position for position, column in enumerate(table.columns) if not column.detail]

    def pick(row: Row) -> Row:
        return tuple(row[position] for position in keep)

    total = pick(table.total) if table.total else None
    return replace(table, columns=tuple(table.columns[p] for p in keep), rows=tuple(map(pick, table.rows)), total=total)


def _grid(table: Table) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, show_footer=table.total is not None, pad_edge=False, show_edge=False)
    for position, column in enumerate(table.columns):
        footer = cell_text(table.total[position], column) if table.total and table.total[position] is not None else ""
        text = column.unit == "text"
        grid.add_column(
            column.title,
            Text(footer),
            justify="left" if text else "right",
            no_wrap=not text,
            overflow="fold",
            footer_style="bold",
        )
    for row in table.rows:
        grid.add_row(*(Text(cell_text(value, column)) for value, column in zip(row, table.columns, strict=True)))
    return grid


def _least_width(table: Table) -> int:
    width = 0
    for position, column in enumerate(table.columns):
        cells = [cell_text(row[position], column) for row in (*table.rows, *([table.total] if table.total else []))]
        longest = max(len(text) for text in cells)
        width += min(longest, 16) if column.unit == "text" else max(longest, *map(len, column.title.split()))
    return width + 3 * (len(table.columns) - 1)


def _list(console: Console, table: Table) -> None:
    for row in (*table.rows, *([table.total] if table.total else [])):
        first, *rest = zip(row, table.columns, strict=True)
        console.print(Text(cell_text(*first), style="bold"), soft_wrap=True)
        for value, column in rest:
            if value is not None:
                console.print(Text(f"  {column.title}: {cell_text(value, column)}"), soft_wrap=True)
