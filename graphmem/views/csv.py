"""The finest table of a Report as CSV, one row a tensor: what every printed total is a sum of."""

from __future__ import annotations

import csv
import io

from graphmem.report import Report, Table

KEY = "tensors"


def render(report: Report) -> str:
    """Rows of every section's ``tensors`` table under one header, with the section first. Raw numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] = []
    for section in report.sections:
        table = next((table for table in section.tables if table.key == KEY), None)
        if isinstance(table, Table):
            if not header:
                header = ["section", *(column.key for column in table.columns)]
                writer.writerow(header)
            writer.writerows([section.name, *row] for row in table.rows)
    return out.getvalue()
