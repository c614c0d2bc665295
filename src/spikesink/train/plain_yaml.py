"""YAML as plain data: bounded, also where aliases unfold; no duplicate keys, no merges, no tags that run code."""

from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode

from spikesink.errors import InputError, short

MAX_CHARACTERS = 2**17
"""A recipe has about a thousand; the parser takes a second for this many."""
MAX_ITEMS = 20_000
"""Values in all, each alias counted as what it stands for: ten lines of them can stand for a billion."""


def read_yaml(text: str, what: str) -> Any:
    """The plain data in a YAML text; `what` begins the message. Raises InputError for everything else."""
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{what} has {len(text):,} characters, expected at most {MAX_CHARACTERS:,}; is it a recipe?")
    try:
        content = yaml.load(text, Loader=_PlainLoader)
        if _count(content, 0) > MAX_ITEMS:
            raise InputError(f"{what} unfolds to more than {MAX_ITEMS:,} values; write it with fewer aliases.")
    except RecursionError:
        raise InputError(f"{what} is nested too deeply.") from None
    except InputError:
        raise
    # Beside YAMLError, values such as 2001-99-99, !!bool x or 5,000 digits raise whatever Python does with them.
    except Exception as error:
        raise InputError(f"{what} is no YAML: {short(error)}.") from error
    return content


def _count(value: Any, before: int) -> int:
    """Values so far with those in this one; stops beyond MAX_ITEMS."""
    total = before + 1
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if total > MAX_ITEMS:
            break
        total = _count(part, total)
    return total


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader runs no code; this one also refuses what would be ambiguous, or grow while it is read."""

    def flatten_mapping(self, node: MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merge keys (<<) are not allowed", key.start_mark)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key.value, str)):
            if key.value in seen:
                raise ConstructorError(None, None, f"'{key.value}' comes twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
