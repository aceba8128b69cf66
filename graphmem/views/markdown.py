"""A Report as GitHub-flavoured Markdown."""

from __future__ import annotations

from graphmem.report import Report, Section, Table
from graphmem.views.cells import cell_text, figure_text


def render(report: Report, *, explain: bool = False) -> str:
    """Headings, a list of figures, and one pipe table each."""
    lines = [f"# {_escape(report.target)}", "", f"*{_escape(report.origin)}*", ""]
    for section in report.sections:
        lines += _section(section, explain)
    lines += [f"- Note: {_escape(note)}" for note in report.notes]
    lines += [f"- **Warning**: {_escape(warning)}" for warning in report.warnings]
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section, explain: bool) -> list[str]:
    lines = [f"## {_escape(section.name)}", ""] if section.name else []
    for figure in section.figures:
        lines.append(f"- {figure.title}: **{figure_text(figure)}** ({figure.basis})")
        if explain and figure.explain:
            lines.append(f"  - {_escape(figure.explain)}")
    lines.append("")
    for table in section.tables:
        lines += _table(table, explain)
    return lines


def _table(table: Table, explain: bool) -> list[str]:
    lines = [f"### {table.title} ({table.basis})", ""]
    if table.rows:
        lines.append("| " + " | ".join(column.title for column in table.columns) + " |")
        lines.append("|" + "|".join(" :-- " if column.unit == "text" else " --: " for column in table.columns) + "|")
        for row in table.rows:
            cells = (cell_text(value, column) for value, column in zip(row, table.columns, strict=True))
            lines.append("| " + " | ".join(_escape(text) for text in cells) + " |")
        if table.total:
            cells = (
                f"**{cell_text(value, column)}**" if value is not None else ""
                for value, column in zip(table.total, table.columns, strict=True)
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"{_escape(note)}" for note in table.notes]
    if explain:
        lines += [f"- {_escape(line)}" for line in table.explain]
    return [*lines, ""] if table.notes or explain else lines


def _escape(text: str) -> str:
    for mark in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text
