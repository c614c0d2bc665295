"""What a record says, as a small tree that terminal, page and notebook render: statements, figures, tables, charts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spikesink.report.format import quantity

if TYPE_CHECKING:
    from spikesink.report.drawing import Figure


FORMATS = ("svg", "pdf", "png")
"""Files that a chart can be written as."""


@dataclass(frozen=True)
class Statement:
    """One thing that a record answers: a heading, its sentences or points, and whether it was measured."""

    heading: str
    text: str
    points: tuple[str, ...] = ()
    measured: bool = True
    command: str | None = None
    """A command line that stands in the text or the points: the page offers it to be copied."""


@dataclass(frozen=True)
class Merit:
    """A figure of merit: a number with unit and interval, or a word."""

    label: str
    value: float | str | None
    unit: str = ""
    """`%` of a fraction, `nats`, `×`, ... ; nothing for a plain number."""
    low: float | None = None
    high: float | None = None
    note: str = ""
    digits: int = 3

    @property
    def text(self) -> str:
        """The value as it is shown everywhere."""
        if isinstance(self.value, str):
            return self.value
        return quantity(self.value, self.unit, self.low, self.high, self.digits)


@dataclass(frozen=True)
class Table:
    """Rows under column names; `styles` gives a row's class, numbers stand on the right."""

    caption: str
    columns: Sequence[str]
    rows: list[list[str]]
    styles: list[str] = field(default_factory=list)
    words: int = 1
    """Leading columns that hold words, not numbers."""
    note: str = ""
    aside: str = ""
    """A longer note, for the page alone."""
    brief: Sequence[str] | None = None
    """Columns that a terminal has room for; None for all, nothing where the table is for the page alone."""
    most: int | None = None
    """Rows that a terminal shows."""
    sort: Sequence[Sequence[float | str | None]] = ()
    """What the page sorts each row's cells by, by column; with it the table can be sorted and filtered there."""
    choices: Sequence[str] = ()
    """Columns by whose values the page can filter."""
    curves: Sequence[Sequence[float]] = ()
    """One small curve a row, drawn by the page in a last column; positive values, on a logarithmic scale."""
    curve: str = ""
    """The name of that column."""

    @property
    def picked(self) -> list[tuple[str, int]]:
        """The columns that the page can filter by, and where they stand."""
        return [(name, list(self.columns).index(name)) for name in self.choices]

    def path(self, index: int) -> str:
        """A row's curve as an SVG path in a box of 96 x 24; nothing for fewer than two points."""
        values = [math.log10(max(value, 1e-3)) for value in self.curves[index]]
        if len(values) < 2:
            return ""
        low, span = min(values), max(max(values) - min(values), 1e-9)
        points = [(96 * x / (len(values) - 1), 22 - 20 * (y - low) / span) for x, y in enumerate(values)]
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)

    def style(self, index: int) -> str:
        return self.styles[index] if index < len(self.styles) else ""


@dataclass
class Part:
    """A heading with an introduction, figures of merit, charts and tables."""

    id: str
    title: str
    intro: str = ""
    merits: Sequence[Merit] = ()
    figures: Sequence["Figure"] = ()
    tables: Sequence[Table] = ()
    note: str = ""
    """What else there is to know, or why there is nothing to see."""
    label: str = ""
    """Its name where there is little room; the id where it has none of its own."""
    template: str = ""
    """HTML template that draws what is special in this section; nothing for none."""
    content: Any = None
    """What that template draws."""

    @property
    def empty(self) -> bool:
        return not (self.merits or self.figures or self.tables or self.note or self.template)

    @property
    def short(self) -> str:
        return self.label or self.id.replace("-", " ").capitalize()


@dataclass(frozen=True)
class Unmeasured:
    """What was not measured, and the command that adds it."""

    what: str
    command: str


@dataclass
class Document:
    """Everything that a record, or several, have to say."""

    kind: str
    title: str
    lead: str
    """One line under the title: what was measured on what."""
    statements: list[Statement] = field(default_factory=list)
    merits: list[Merit] = field(default_factory=list)
    """What one wants to see first."""
    sections: list[Part] = field(default_factory=list)
    unmeasured: list[Unmeasured] = field(default_factory=list)
    heads: dict[str, Any] | None = None
    """Details of every head for the sink map; see `head_details`."""
    conditions: list[tuple[str, Table]] = field(default_factory=list)
    """By record: its provenance."""
    next: Statement | None = None
    """What to run next, and its cost."""
    command: str = ""
    """What makes this page again."""
    condition: str = ""
    """The conditions in one line, for a terminal."""

    def figures(self) -> list["Figure"]:
        return [figure for section in self.sections for figure in section.figures]
