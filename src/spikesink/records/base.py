"""What every record is: frozen, versioned, self-contained, and written whole or not at all.

Every figure and table can be made again from a record without the model.
"""

import datetime
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self, TypeGuard, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from spikesink.errors import InputError, NumericError, RecordError, did_you_mean
from spikesink.records.files import read_files, read_json, run_folder, write_files
from spikesink.shown import Shown

Rows = list[dict[str, Any]]
LEFT_OUT = ("timing",)
"""Parts of a record that differ between two runs of the same command."""


def rows_of(part: BaseModel, name: str | None = None) -> Rows:
    """A part of a record as rows: of the list `name`, else of its only or its main list, else one row of its values.

    Nested values get dotted names. Raises InputError where the part has several lists and neither is named.
    """
    content = part.model_dump(mode="json", by_alias=True)
    lists = [key for key, value in content.items() if is_rows(value)]
    if name is None and len(lists) > 1:
        name = getattr(part, "main", None)
    if name is not None and content.get(name) == []:
        return []
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

        # Column by column: of rows, only the first hundred would decide what a column may hold.
        names = columns or dict.fromkeys(name for row in rows for name in row)
        return polars.DataFrame([polars.Series(name, [row.get(name) for row in rows], strict=False) for name in names])
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


def is_rows(value: Any) -> bool:
    """Whether a value of a record is a list of rows: not empty, and each with names."""
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


SCHEMA = 1
Kind = TypeVar("Kind", bound=BaseModel)


class Tabular(Shown, BaseModel):
    """What can be had as a data frame, and draws itself in a notebook."""

    main: ClassVar[str | None] = None
    """Of several lists, the one that is meant where none is named."""

    def to_dataframe(self, name: str | None = None) -> Any:
        """Its rows as a pandas (or polars) data frame: the list `name`, its only or main one, or a row of its values.

        Raises InputError where it has several lists, none of them the main one, and none is named.
        """
        return data_frame(rows_of(self, name))


class Frozen(Tabular):
    """A value that does not change after it was measured; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Section(Frozen):
    """A part of the record that one measure fills; a measure that does not apply says why and fills nothing else."""

    known: ClassVar[dict[str, type["Section"]]] = {}
    """Types of sections by their name in the record, so that a record that is read gets them back."""
    section: ClassVar[str | None] = None

    applicable: bool = True
    reason: str | None = None

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        if cls.section is not None:
            Section.known[cls.section] = cls


class NotApplicable(Section):
    """What a measure leaves in the record of a model that it does not apply to."""

    applicable: bool = False


class Provenance(Frozen):
    """What a record was measured on and with: model, token ids, versions, settings."""

    model: dict[str, Any]
    tokens: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]


class Timing(Frozen):
    """Seconds; the only part of a record that differs between two runs of the same command."""

    created: str
    load_s: float
    forward_s: float
    total_s: float

    @classmethod
    def now(cls, *, load_s: float = 0.0, forward_s: float = 0.0, total_s: float) -> Self:
        """Of a result that was just made; `created` is in UTC, to the second."""
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(created=created, load_s=load_s, forward_s=forward_s, total_s=total_s)


def package_versions() -> dict[str, str]:
    """What a result was computed with, without importing any of it."""
    import platform
    from importlib.metadata import version

    from spikesink import __version__

    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"spikesink": __version__, **versions, "python": platform.python_version()}


def as_json(record: BaseModel) -> str:
    """Raises NumericError where a number is not finite (a ratio to a median of 0): JSON has none."""
    content = record.model_dump(mode="json", by_alias=True)
    try:
        return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError:
        where = ", ".join(_not_finite(content)[:3])
        raise NumericError(f"The result has numbers that are not finite: {where}. No record is written.") from None


def _not_finite(content: object, where: str = "") -> list[str]:
    """Dotted paths of numbers that are not finite."""
    if isinstance(content, float):
        return [] if math.isfinite(content) else [f"{where.removeprefix('.')} = {content}"]
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [problem for key, value in parts for problem in _not_finite(value, f"{where}.{key}")]


def validated(kind: type[Kind], content: dict[str, Any], path: Path, command: str) -> Kind:
    """Content of a file as a record of this kind and schema. Raises RecordError."""
    if content.get("schema") != SCHEMA:
        raise RecordError(f"'{path}' has schema {content.get('schema')}; this version reads schema {SCHEMA}.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        raise RecordError(
            f"'{path}' is no record of schema {SCHEMA}: {where}: {first['msg'][:300]}. Make it again with "
            f"{command} --out."
        ) from None


class Comparable(Tabular):
    """A result as a whole: its JSON, and what differs from another of its kind."""

    def __repr__(self) -> str:
        """Its kind, the model and what it says first; the whole of it is `model_dump()` or `to_json()`."""
        short = None
        # What is no whole record must be seen too.
        with suppress(Exception):
            short = Comparable.brief(self) if Comparable.brief is not None else None
        return super().__repr__() if short is None else f"<{short}>"

    def __str__(self) -> str:
        return repr(self)

    def to_json(self) -> str:
        """The record as JSON text; numbers that are not finite are refused, since JSON has none."""
        return as_json(self)

    def diff(self, other: BaseModel) -> Any:
        """What differs from `other`, conditions and results, as a data frame: where, one, other, difference.

        Timing is left out. Raises InputError for a record of another kind.
        """
        return data_frame(differences(self, other), ["where", "one", "other", "difference"])


class Record(Comparable):
    """A result as JSON and, beside it, its large arrays; a kind of record names its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, arbitrary_types_allowed=True)
    file: ClassVar[str]
    arrays_file: ClassVar[str]
    command: ClassVar[str]
    """What makes such a record, for error messages."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    arrays: SkipJsonSchema[dict[str, np.ndarray]] = Field(default_factory=dict, exclude=True, repr=False)

    def save(self, folder: Path | str, *, force: bool = False) -> Path:
        """Write both files, whole or not at all; returns the folder. Raises OutputError."""
        from safetensors.numpy import save

        folder = Path(folder)
        arrays = save({name: np.ascontiguousarray(array) for name, array in self.arrays.items()})
        write_files(folder, {self.arrays_file: arrays, self.file: self.to_json().encode()}, force=force)
        return folder

    @classmethod
    def read(cls, folder: Path | str) -> Self:
        """Read a record that was written by `save`, from its folder or its JSON file. Raises RecordError."""
        folder = run_folder(Path(folder), cls.file)
        content, arrays = read_files(folder, cls.file, cls.arrays_file, cls.command)
        return validated(cls, {**content, "arrays": arrays}, folder / cls.file, cls.command)


class JsonRecord(Comparable, Frozen):
    """A record that is one JSON file, named by whoever writes it."""

    command: ClassVar[str]
    """What makes such a file, for error messages."""

    schema_version: int = Field(default=SCHEMA, alias="schema")

    def write(self, path: Path | str) -> Path:
        """Write the file, whole or not at all, over an older one. Raises OutputError."""
        path = Path(path)
        write_files(path.parent, {path.name: self.to_json().encode()}, force=True)
        return path

    @classmethod
    def read_file(cls, path: Path | str) -> Self:
        """Read what `write` wrote. Raises RecordError."""
        path = Path(path)
        return validated(cls, read_json(path, cls.command), path, cls.command)
