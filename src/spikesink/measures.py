"""The registry of further measures: what each answers, what computes it, what shows it. Importing this loads no torch.

A measure of the package is one line of `BUILT_IN`; its parts are found by its name: the section in `records`, the maths
in `measure/NAME.py`, the meeting with the model in `analyse/anatomy/NAME.py` (`measure_NAME`) and, where it has one,
its part of the document in `report/NAME.py` (`NAME_part`). A measure from outside is a `Measure` given to `register`,
or an entry point of the group `spikesink.measures` that names one.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from spikesink.errors import InputError, did_you_mean

GROUP = "spikesink.measures"
"""Entry point group of measures in other packages."""

Lazy = str | Callable[..., Any]
"""A function, or `module:attribute` that is imported when it is first needed."""

BUILT_IN = {
    "amplifier": "Which channels does a feed-forward block amplify, and from which direction?",
    "trigger": "Which tokens spike, and why the first one?",
    "normalisation": "What does the norm make of spike tokens?",
    "geometry": "Why do queries find the sink's key?",
    "heads": "What does the sink do to what a head looks at and writes?",
    "properties": "Do the five properties of massive activations hold, and are spike tokens sink tokens?",
}
"""Name of a measure -> the question it answers. In the order in which they run and are shown."""


@dataclass(frozen=True)
class Measure:
    """A further measure of a scan.

    `run(scanned, progress)` gives a section of the record and its large arrays, where it needs the text again as a
    generator of `analyse.passes.Pass`; `part(record, section)` gives a `report.document.Part`; without it the section's
    fields are shown as figures and tables.
    """

    name: str
    """What `--measure` and `measures=` take, and the section's name in the record."""
    question: str
    run: Lazy
    part: Lazy | None = None


_REGISTERED: dict[str, Measure] = {}


def register(measure: Measure) -> Measure:
    """Add a measure from outside the package, or replace one of the same name; returns it.

    Raises InputError for a name that no record can have.
    """
    if not measure.name.isidentifier() or measure.name == "all":
        raise InputError(f"Got a measure named '{measure.name}'; expected a Python name other than 'all'.")
    _REGISTERED[measure.name] = measure
    return measure


def unregister(name: str) -> None:
    """Forget a registered measure; nothing happens if there is none."""
    _REGISTERED.pop(name, None)


def measures() -> dict[str, Measure]:
    """Every measure by name: the package's, those of other packages' entry points, those registered by a call."""
    built_in = {name: _built_in(name, question) for name, question in BUILT_IN.items()}
    return {**built_in, **_from_entry_points(), **_REGISTERED}


def _built_in(name: str, question: str) -> Measure:
    shown = f"spikesink.report.{name}"
    part = f"{shown}:{name}_part" if find_spec(shown) is not None else None
    return Measure(name, question, f"spikesink.analyse.anatomy.{name}:measure_{name}", part)


@cache
def _from_entry_points() -> dict[str, Measure]:
    registered = {}
    for point in entry_points(group=GROUP):
        try:
            measure = point.load()
        except Exception as error:
            # Another package's fault must not stop a scan or a page.
            warnings.warn(f"The measure '{point.name}' of another package cannot be loaded: {error}", stacklevel=2)
            continue
        registered[measure.name] = measure
    return registered


def resolve(function: Lazy) -> Callable[..., Any]:
    """The function itself, imported if it is only named."""
    if not isinstance(function, str):
        return function
    module, _, attribute = function.partition(":")
    return getattr(import_module(module), attribute)


def parse_names(text: str | None) -> tuple[str, ...]:
    """Measure names of a command line option: `amplifier,trigger` or `all`. Raises InputError for unknown ones."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    check_names(names)
    return names


def check_names(names: tuple[str, ...]) -> None:
    """Refuse unknown measure names. Raises InputError."""
    known = [*measures(), "all"]
    for name in names:
        if name not in known:
            raise InputError(f"Unknown measure '{name}'{did_you_mean(name, known)}")


def chosen(names: tuple[str, ...]) -> list[Measure]:
    """The measures of these names, each once; "all" is every one. Raises InputError for unknown ones."""
    check_names(names)
    known = measures()
    return list(known.values()) if "all" in names else [known[name] for name in dict.fromkeys(names)]
