"""Records from the fields that matter to a test: what their types ask for besides is filled in.

Every number is another one, and always the same: it follows from the path of its field. Texts that may be missing,
which give the reason why something is missing, stay None.
"""

import types
import typing
from typing import Any
from zlib import crc32

from pydantic import BaseModel

from spikesink.records import Section


def completed(kind: type[BaseModel], given: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Fields of a record: those given, in nested parts too, and something for every other that is required."""
    content = dict(given)
    for name, field in kind.model_fields.items():
        key, where = field.alias or name, f"{path}.{name}"
        if key in content:
            content[key] = _nested(field.annotation, content[key], where)
        elif field.is_required():
            content[key] = _something(field.annotation, where)
    for name in content.keys() & Section.known.keys() - kind.model_fields.keys():
        content[name] = completed(Section.known[name], content[name], f"{path}.{name}")
    return content


def _nested(annotation: Any, value: Any, path: str) -> Any:
    """Given values, with the records among them completed."""
    for kind in _choices(annotation):
        if isinstance(value, dict) and _is_record(kind):
            return completed(kind, value, path)
        inner = typing.get_args(kind)
        if isinstance(value, list) and typing.get_origin(kind) is list:
            return [_nested(inner[0], entry, f"{path}.{place}") for place, entry in enumerate(value)]
    return value


def _something(annotation: Any, path: str) -> Any:
    kind = _choices(annotation)[0]
    if _is_record(kind):
        return completed(kind, {}, path)
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)[0]
    if kind is str:
        return None if type(None) in typing.get_args(annotation) else path.rpartition(".")[2]
    number = crc32(path.encode()) % 9973 + 1
    plain = {float: number / 9974, int: number, bool: True}
    return plain[kind] if kind in plain else (typing.get_origin(kind) or kind)()


def _choices(annotation: Any) -> list[Any]:
    """The types that a value may have, without None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [kind for kind in (typing.get_args(annotation) if union else (annotation,)) if kind is not type(None)]


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
