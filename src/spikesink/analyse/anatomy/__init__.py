"""The further measures of a scan, by name: each is one file of this package and one line here."""

from collections.abc import Callable
from typing import Any

import numpy as np

from spikesink.analyse.anatomy.amplifier import measure_amplifier
from spikesink.analyse.anatomy.geometry import measure_geometry
from spikesink.analyse.anatomy.heads import measure_heads
from spikesink.analyse.anatomy.normalisation import measure_normalisation
from spikesink.analyse.anatomy.properties import measure_properties
from spikesink.analyse.anatomy.trigger import measure_trigger
from spikesink.analyse.passes import Progress
from spikesink.analyse.scanned import Scanned
from spikesink.errors import DoesNotApplyError, InputError, did_you_mean
from spikesink.records import NotApplicable, Section

Measure = Callable[[Scanned, Progress], tuple[Section, dict[str, np.ndarray]]]
"""What a measure is: from what a scan found to a section of the record and its large arrays."""

MEASURES: dict[str, Measure] = {
    "amplifier": measure_amplifier,
    "trigger": measure_trigger,
    "normalisation": measure_normalisation,
    "geometry": measure_geometry,
    "heads": measure_heads,
    "properties": measure_properties,
}


def parse_names(text: str | None) -> tuple[str, ...]:
    """Measure names of a command line option: `amplifier,trigger` or `all`. Raises InputError for unknown ones."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    check_names(names)
    return names


def check_names(names: tuple[str, ...]) -> None:
    """Refuse unknown measure names. Raises InputError."""
    for name in names:
        if name != "all" and name not in MEASURES:
            raise InputError(f"Unknown measure '{name}'{did_you_mean(name, [*MEASURES, 'all'])}")


def run_measures(
    scanned: Scanned, names: tuple[str, ...], progress: Progress
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Sections by name and all arrays, prefixed with the measure's name; one that does not apply says why."""
    check_names(names)
    chosen = list(MEASURES) if "all" in names else list(dict.fromkeys(names))
    sections: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name in chosen:
        try:
            section, found = MEASURES[name](scanned, progress)
        except DoesNotApplyError as reason:
            section, found = NotApplicable(reason=str(reason)), {}
        sections[name] = section
        arrays.update({f"{name}.{key}": array for key, array in found.items()})
    return sections, arrays
