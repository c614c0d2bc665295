"""A section of a record without a part of its own: its single values as figures, its lists of rows as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from spikesink.report.document import Merit, Section, Table
from spikesink.report.format import number

HIDDEN = ("applicable", "reason")
ROWS = 200
"""Rows of a table that are shown; the record has all."""
ITEMS = 12
"""Values of a plain list that are shown."""


def fields_part(name: str, title: str, content: BaseModel | Mapping[str, Any]) -> Section:
    """Every field of a section, typed or as it was read from a file."""
    values = content.model_dump(mode="json") if isinstance(content, BaseModel) else dict(content)
    values = {key: value for key, value in values.items() if key not in HIDDEN}
    tables = {key: value for key, value in values.items() if _is_table(value)}
    return Section(
        name,
        title,
        merits=[Merit(_words(key), text(value)) for key, value in values.items() if key not in tables],
        tables=[_table(_words(key), rows) for key, rows in tables.items()],
    )


def _words(key: str) -> str:
    return key.replace("_", " ")


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(caption: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    note = f"The first {ROWS} of {len(rows):,} rows; the record has all." if len(rows) > ROWS else ""
    cells = [[text(row.get(key)) for key in columns] for row in rows[:ROWS]]
    return Table(caption[:1].upper() + caption[1:], [_words(key) for key in columns], cells, note=note, most=8)


def text(value: Any) -> str:
    """Any value of a JSON record as a cell."""
    if value is None or isinstance(value, float):
        return number(value, 4)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return "; ".join(f"{_words(str(key))} {text(item)}" for key, item in value.items())
    if isinstance(value, list):
        shown = ", ".join(text(item) for item in value[:ITEMS])
        return f"{shown} … {len(value)} in all" if len(value) > ITEMS else shown or number(None)
    return str(value)
