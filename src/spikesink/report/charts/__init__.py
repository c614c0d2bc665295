"""Charts as Altair specifications: one declaration is interactive on the page and, by vl-convert, a paper's figure."""

from collections.abc import Callable
from typing import Any

from spikesink.records import Anatomy, NotApplicable, Section
from spikesink.records.interventions import Interventions
from spikesink.report.charts.amplifier import amplifier_figures
from spikesink.report.charts.base import Figure
from spikesink.report.charts.geometry import geometry_figures
from spikesink.report.charts.heads import heads_figures
from spikesink.report.charts.interventions import intervention_figures
from spikesink.report.charts.lifecycle import lifecycle_figures
from spikesink.report.charts.normalisation import normalisation_figures
from spikesink.report.charts.quantisation import cache_figures, quantisation_figures
from spikesink.report.charts.sink_map import head_importance, sink_map
from spikesink.report.charts.trigger import trigger_figures

SECTIONS: dict[str, Callable[[Anatomy, Any], list[Figure]]] = {
    "amplifier": amplifier_figures,
    "trigger": trigger_figures,
    "normalisation": normalisation_figures,
    "geometry": geometry_figures,
    "heads": heads_figures,
}
"""Charts of each further measure, by its name in the record."""


def section_figures(record: Anatomy, name: str) -> list[Figure]:
    """Charts of one further measure; none where it was not run, does not apply, or has no charts."""
    section = (record.model_extra or {}).get(name)
    known = isinstance(section, Section) and not isinstance(section, NotApplicable) and section.applicable
    return SECTIONS[name](record, section) if known and name in SECTIONS else []


def anatomy_figures(record: Anatomy) -> list[Figure]:
    """Every chart of a scan."""
    figures = [*lifecycle_figures(record), sink_map(record), head_importance(record)]
    return figures + [figure for name in SECTIONS for figure in section_figures(record, name)]


def interventions_figures(record: Interventions) -> list[Figure]:
    """Every chart of a record of interventions."""
    return [*intervention_figures(record), *quantisation_figures(record), *cache_figures(record)]


__all__ = [
    "Figure",
    "anatomy_figures",
    "cache_figures",
    "head_importance",
    "intervention_figures",
    "interventions_figures",
    "lifecycle_figures",
    "quantisation_figures",
    "section_figures",
    "sink_map",
]
