"""What a page is made of, before the template draws it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spikesink.report.answer import Statement
from spikesink.report.charts.base import Figure
from spikesink.report.tables import Table


@dataclass(frozen=True)
class Tile:
    """A number that one wants to see first."""

    label: str
    value: str
    note: str = ""


@dataclass
class Section:
    """A heading with an introduction, figures and tables."""

    id: str
    title: str
    intro: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    missing: str = ""
    """Why there is nothing to see, and what adds it."""
    part: str = ""
    """Template that draws what is special in this section; nothing for none."""
    content: Any = None
    """What that template draws."""

    @property
    def empty(self) -> bool:
        return not (self.figures or self.tables or self.missing or self.part)


@dataclass
class Page:
    """A whole page."""

    kind: str
    title: str
    lead: str
    """One line under the title: what was measured, when, by what."""
    statements: list[Statement] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    heads: dict[str, Any] | None = None
    """Details of every head for the sink map; see `head_details`."""
    conditions: list[tuple[str, Table]] = field(default_factory=list)
    """By record: its provenance."""

    def figures(self) -> list[Figure]:
        return [figure for section in self.sections for figure in section.figures]
