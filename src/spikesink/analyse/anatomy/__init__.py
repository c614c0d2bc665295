"""The further measures of a scan meet the model: each is one file of this package and one line of the registry."""

from collections.abc import Callable
from typing import Any

import numpy as np

from spikesink.analyse.passes import Progress, Scan, Steps, in_steps, run_together
from spikesink.errors import DoesNotApplyError
from spikesink.measures import chosen, resolve
from spikesink.records import NotApplicable, Section

Measured = tuple[Section, dict[str, np.ndarray]]
"""A section of the record and its large arrays."""
Run = Callable[[Scan, Progress], Measured | Steps[Measured]]
"""What computes a measure from what a scan found; one that needs the text again yields a `Pass`."""


def run_measures(
    scanned: Scan, names: tuple[str, ...], progress: Progress
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Sections by name and all arrays, prefixed with the measure's name; one that does not apply says why."""
    running = {measure.name: _steps(resolve(measure.run), scanned, progress) for measure in chosen(names)}
    found = run_together(scanned, running, progress)
    arrays = {f"{name}.{key}": array for name in running for key, array in found[name][1].items()}
    return {name: found[name][0] for name in running}, arrays


def _steps(run: Run, scanned: Scan, progress: Progress) -> Steps[Measured]:
    try:
        return (yield from in_steps(run(scanned, progress)))
    except DoesNotApplyError as reason:
        return NotApplicable(reason=str(reason)), {}
