"""A Report as JSON: bytes and counts as integers, absent values null, no NaN. ``docs/json.md`` documents it."""

from __future__ import annotations

import json
from typing import Any

from graphmem.report import SCHEMA_VERSION, Report, Section, Table


def render(report: Report) -> str:
    """The document, indented, with a final newline."""
    return json.dumps(as_dict(report), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def as_dict(report: Report) -> dict[str, Any]:
    """The document as Python objects."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": report.command,
        "target": report.target,
        "origin": report.origin,
        "sections": [_section(section) for section in report.sections],
        "notes": list(report.notes),
        "warnings": list(report.warnings),
    }


def _section(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "figures": {
            f.key: {"value": f.value, "unit": f.unit, "basis": f.basis, "explain": f.explain} for f in section.figures
        },
        "tables": {table.key: _table(table) for table in section.tables},
    }


def _table(table: Table) -> dict[str, Any]:
    keys = [column.key for column in table.columns]
    return {
        "title": table.title,
        "basis": table.basis,
        "units": {column.key: column.unit for column in table.columns},
        "rows": table.records(),
        "total": dict(zip(keys, table.total, strict=True)) if table.total else None,
        "notes": list(table.notes),
        "explain": list(table.explain),
    }
