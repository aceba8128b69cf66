"""The finest table of a Report as CSV: a row a tensor, or a row an allocation or release, a measured figure or a stage of training; what every printed total is a sum of.

Of a Report without one of these, its first: the items of an engine, the layouts of a plan."""

from __future__ import annotations

import csv
import io

from graphmem.report import Report, Table

KEYS = ("tensors", "timeline", "measured", "stages")


def render(report: Report) -> str:
    """Rows of every section's finest table under one header, with the section first. Raw numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] = []
    for section in report.sections:
        table = next((table for table in section.tables if table.key in KEYS), next(iter(section.tables), None))
        if isinstance(table, Table):
            if not header:
                header = ["section", *(column.key for column in table.columns)]
                writer.writerow(header)
            writer.writerows([section.name, *row] for row in table.rows)
    return out.getvalue()
