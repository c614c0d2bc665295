"""Records as data frames, and two records held against each other; pandas or polars, whichever is installed."""

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, TypeGuard

from pydantic import BaseModel

from spikesink.errors import InputError, did_you_mean

Rows = list[dict[str, Any]]
LEFT_OUT = ("timing",)
"""Parts of a record that differ between two runs of the same command."""


def rows_of(part: BaseModel, name: str | None = None) -> Rows:
    """A part of a record as rows: of the list `name`, else of its only list, else one row of its values.

    Nested values get dotted names. Raises InputError where the part has several lists and none is named.
    """
    content = part.model_dump(mode="json", by_alias=True)
    lists = [key for key, value in content.items() if _is_rows(value)]
    if name is not None and name not in lists:
        raise InputError(f"No rows called '{name}'{did_you_mean(name, lists)}")
    if name is None and len(lists) > 1:
        raise InputError(
            f"There are several lists of rows here: {', '.join(lists)}. Name one: to_dataframe('{lists[0]}')."
        )
    chosen = name or (lists[0] if lists else None)
    if chosen is None:
        return [dict(_flat({key: value for key, value in content.items() if key not in LEFT_OUT}))]
    return [dict(_flat(row)) for row in content[chosen]]


def data_frame(rows: Rows, columns: list[str] | None = None) -> Any:
    """Rows as a pandas data frame, or a polars one where only that is installed. Raises InputError for neither."""
    if find_spec("pandas") is not None:
        import pandas

        return pandas.DataFrame(rows, columns=columns)
    if find_spec("polars") is not None:
        import polars  # type: ignore[reportMissingImports]

        return polars.DataFrame(rows, schema=columns)
    raise InputError("Neither pandas nor polars is installed. Install one of them: pip install pandas.")


def differences(one: BaseModel, other: BaseModel) -> Rows:
    """Every value in which two records of one kind differ: where, one, other, and other - one for numbers.

    Lists are compared place by place; where one is longer, the rest of it stands against None. A section that only one
    record has is one row. Timing is left out.
    Raises InputError for records of two kinds.
    """
    if type(one) is not type(other):
        raise InputError(f"Got {type(one).__name__} and {type(other).__name__}; expected two records of the same kind.")
    left, right = (record.model_dump(mode="json", by_alias=True, exclude=set(LEFT_OUT)) for record in (one, other))
    rows: Rows = []
    for part in dict.fromkeys([*left, *right]):
        if part not in left or part not in right:
            there = ["measured" if part in content else None for content in (left, right)]
            rows.append({"where": part, "one": there[0], "other": there[1], "difference": None})
            continue
        first, second = dict(_leaves(left[part], part)), dict(_leaves(right[part], part))
        for where in dict.fromkeys([*first, *second]):
            before, after = first.get(where), second.get(where)
            if before != after:
                change = after - before if _is_number(before) and _is_number(after) else None
                rows.append({"where": where, "one": before, "other": after, "difference": change})
    return rows


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted name; lists stay whole."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _leaves(content: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every single value by its dotted path, with the places in lists."""
    parts = (
        content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list) else None
    )
    if parts is None:
        yield where, content
        return
    for key, value in parts:
        yield from _leaves(value, f"{where}.{key}" if where else str(key))
