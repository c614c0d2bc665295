"""The further measures of a scan meet the model: each is one file of this package and one line of the registry."""

from collections.abc import Callable
from typing import Any

import numpy as np

from spikesink.analyse.passes import Progress, Scan
from spikesink.errors import DoesNotApplyError
from spikesink.measures import chosen, resolve
from spikesink.records import NotApplicable, Section

Run = Callable[[Scan, Progress], tuple[Section, dict[str, np.ndarray]]]
"""What computes a measure: from what a scan found to a section of the record and its large arrays."""


def run_measures(
    scanned: Scan, names: tuple[str, ...], progress: Progress
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Sections by name and all arrays, prefixed with the measure's name; one that does not apply says why."""
    sections: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for measure in chosen(names):
        run: Run = resolve(measure.run)
        try:
            section, own = run(scanned, progress)
        except DoesNotApplyError as reason:
            section, own = NotApplicable(reason=str(reason)), {}
        sections[measure.name] = section
        arrays.update({f"{measure.name}.{key}": array for key, array in own.items()})
    return sections, arrays
