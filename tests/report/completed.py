"""Records from the fields that matter to a test: what their types ask for besides is filled in."""

import types
import typing
from typing import Any

from pydantic import BaseModel


def completed(kind: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """Fields of a record: those given, in nested parts too, and something for every other that is required."""
    content = dict(given)
    for name, field in kind.model_fields.items():
        key = field.alias or name
        if key in content:
            content[key] = _nested(field.annotation, content[key])
        elif field.is_required():
            content[key] = _something(field.annotation, name)
    return content


def _nested(annotation: Any, value: Any) -> Any:
    """Given values, with the records among them completed."""
    for kind in _choices(annotation):
        if isinstance(value, dict) and _is_record(kind):
            return completed(kind, value)
        inner = typing.get_args(kind)
        if isinstance(value, list) and typing.get_origin(kind) is list:
            return [_nested(inner[0], entry) for entry in value]
    return value


def _something(annotation: Any, name: str) -> Any:
    kind = _choices(annotation)[0]
    if _is_record(kind):
        return completed(kind, {})
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)[0]
    plain = {float: 0.5, int: 3, bool: True, str: name}
    return plain[kind] if kind in plain else (typing.get_origin(kind) or kind)()


def _choices(annotation: Any) -> list[Any]:
    """The types that a value may have, without None."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [kind for kind in (typing.get_args(annotation) if union else (annotation,)) if kind is not type(None)]


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
