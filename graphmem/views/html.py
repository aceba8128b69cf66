"""A Report as an HTML fragment, for notebooks and for a page of its own."""

from __future__ import annotations

from html import escape

from graphmem.report import Report, Section, Table
from graphmem.views.cells import cell_text, figure_text

_STYLE = (
    "<style>.graphmem{font-family:system-ui,sans-serif}.graphmem table{border-collapse:collapse;margin:.6em 0 1em}"
    ".graphmem caption{text-align:left;font-weight:600;padding:.2em 0}.graphmem th,.graphmem td{padding:.15em .8em;"
    "border-bottom:1px solid #8884}.graphmem .n{text-align:right;font-variant-numeric:tabular-nums}.graphmem .b{opacity:.65}"
    ".graphmem tfoot td{font-weight:600}</style>"
)


def render(report: Report) -> str:
    """The fragment; every text is escaped."""
    body = "".join(_section(section) for section in report.sections)
    notes = "".join(f"<p class='b'>Note: {escape(note)}</p>" for note in report.notes)
    warnings = "".join(f"<p><b>Warning:</b> {escape(warning)}</p>" for warning in report.warnings)
    head = f"<h3>{escape(report.target)}</h3><p class='b'>{escape(report.origin)}</p>"
    return f"{_STYLE}<div class='graphmem'>{head}{body}{notes}{warnings}</div>"


def page(report: Report) -> str:
    """A document of its own around the fragment."""
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(report.target)} – graphmem</title></head>"
        f"<body>{render(report)}</body></html>\n"
    )


def _section(section: Section) -> str:
    title = f"<h4>{escape(section.name)}</h4>" if section.name else ""
    figures = "".join(
        f"<li>{escape(f.title)}: <b>{escape(figure_text(f))}</b> <span class='b'>{f.basis}</span></li>"
        for f in section.figures
    )
    return f"{title}<ul>{figures}</ul>{''.join(_table(table) for table in section.tables)}"


def _table(table: Table) -> str:
    classes = ["" if column.unit == "text" else " class='n'" for column in table.columns]
    head = "".join(f"<th{c}>{escape(column.title)}</th>" for c, column in zip(classes, table.columns, strict=True))
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{c}>{escape(cell_text(v, column))}</td>"
            for c, v, column in zip(classes, row, table.columns, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    total = ""
    if table.total:
        cells = zip(classes, table.total, table.columns, strict=True)
        total = (
            "<tfoot><tr>"
            + "".join(f"<td{c}>{escape(cell_text(v, k)) if v is not None else ''}</td>" for c, v, k in cells)
            + "</tr></tfoot>"
        )
    notes = "".join(f"<p class='b'>{escape(note)}</p>" for note in table.notes)
    caption = f"<caption>{escape(table.title)} <span class='b'>{table.basis}</span></caption>"
    return (
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>{total}</table>{notes}"
        if table.rows
        else notes
    )
