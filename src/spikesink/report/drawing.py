"""Charts as Altair specifications, interactive on the page and a paper's figure as files: what they all share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2b7bba", "#d55e00", "#1b9e77", "#b2609f", "#8a8f98"
"""Told apart under every colour blindness (after Okabe & Ito), and 3:1 or more against white and against near black."""
PALETTE = [BLUE, ORANGE, GREEN, PURPLE, GREY, "#a6761d", "#e7298a", "#6a6fd6"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [1, 3]]
"""Beside colour, so that a chart survives a grey printer."""
RAMP = "viridis"
DIGITS = 6
PADDING = 6
"""Pixels between the outermost values and the ends of an axis that does not start at 0."""
ROWS = "rows"
"""Name of a figure's data set in its specification."""
WIDTH, HEIGHT = 560, 280
"""Of a paper's figure in pixels; on the page a chart is as wide as its column."""

STEPS = alt.X("step:Q", title="step", axis=alt.Axis(grid=False))

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


def config(ink: str, dim: str, grid: str, font: str = _FONT) -> dict[str, Any]:
    """A Vega-Lite config: three greys and a font; marks that say something have their own colour."""
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": dim, "titleColor": ink, "gridColor": grid, "domainColor": dim, "tickColor": dim,
            "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "labelOverlap": True,
            "labelLimit": 280,
        },
        "legend": {
            "labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 11, "orient": "top",
            "titleFontWeight": "normal", "symbolStrokeWidth": 2, "labelLimit": 260, "offset": 10, "columns": 4,
        },
        "axisXQuantitative": {"tickCount": 10},
        "axisYQuantitative": {"tickCount": 6},
        "header": {"labelColor": ink, "titleColor": ink},
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": dim},
        "range": {"category": PALETTE},
    }  # fmt: skip


LIGHT = config(ink="#1d2430", dim="#5b6472", grid="#e4e7ec")
DARK = config(ink="#e8ebf0", dim="#a3acba", grid="#2c3440")
PAPER = config(ink="#000000", dim="#444444", grid="#e6e6e6", font="Helvetica, 'Liberation Sans', Arial, sans-serif")

Rows = list[dict[str, Any]]
Sketch = Sequence[Sequence[tuple[str, str]]]
"""Lines of (text, style as rich names it)."""


@dataclass(frozen=True)
class Figure:
    """One chart with the rows it draws, what it says, and under which conditions."""

    name: str
    """File name of the paper's figure, and id on the page."""
    title: str
    chart: alt.Chart | alt.LayerChart
    """Made of `drawing()`s: `rows` are put under it when it is written."""
    rows: Rows
    caption: str
    """How to read it, with n."""
    alternative: str
    """What the chart shows, in words, for who does not see it."""
    conditions: str = ""
    """Model, tokens and the like, for where the chart stands alone; a page says them once."""
    wide: bool = False
    """Whether it needs the page's whole width."""
    key: bool = False
    """Whether it is shown where there is room for one or two only, as in a notebook."""
    sketch: Sketch = ()
    """The chart in characters, for a terminal; nothing where that says less than the words."""

    def spec(self, width: int | str = "container") -> dict[str, Any]:
        """The Vega-Lite specification without its rows, which the reader adds to its `datasets` as `rows`."""
        spec = self.chart.to_dict(validate=False)
        spec.pop("config", None)
        return {**spec, "width": width, "autosize": {"type": "fit-x", "contains": "padding"}}

    def with_rows(self) -> dict[str, Any]:
        """The whole specification for a file: rows, white ground, the paper's config, nothing picked."""
        spec = self.spec(WIDTH)
        spec |= {"params": [{**param, "value": None} for param in spec["params"]]} if "params" in spec else {}
        return {
            **spec,
            "datasets": {**spec.get("datasets", {}), ROWS: self.rows},
            "config": {**PAPER, "background": "white", "aria": False},
            "autosize": {"type": "pad"},
        }


def rounded(value: Any) -> Any:
    """A number to the digits that a chart can show; None where it is not finite, since JSON has no such number."""
    if isinstance(value, bool) or value is None or not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def table(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows with rounded numbers."""
    return [{name: rounded(value) for name, value in row.items()} for row in rows]


def drawing() -> alt.Chart:
    """A chart, or a layer of one, of the figure's rows."""
    return alt.Chart(alt.NamedData(name=ROWS))


def inline(rows: Iterable[Mapping[str, Any]]) -> alt.InlineData:
    """A small data set of a layer's own."""
    return alt.InlineData(values=table(rows))


def colours(domain: Sequence[str], colours: Sequence[str] | None = None) -> alt.Scale:
    """A colour for each name, in the palette's order."""
    return alt.Scale(domain=list(domain), range=(list(colours or PALETTE) * 4)[: len(domain)])


def dashes(domain: Sequence[str]) -> alt.Scale:
    """A dash for each name; shifted where colours start again, so that no two names look the same."""
    shifted = [DASHES[(index + index // len(PALETTE)) % len(DASHES)] for index in range(len(domain))]
    return alt.Scale(domain=list(domain), range=shifted)


def log_scale(values: Iterable[float | None]) -> alt.Scale:
    """Logarithmic where all values are positive, else symmetric about 0."""
    known = [value for value in values if value is not None]
    if known and min(known) > 0:
        return alt.Scale(type="log", nice=False, padding=PADDING)
    return alt.Scale(type="symlog", constant=0.01, padding=PADDING)


def magnitude_axis(values: Iterable[float | None]) -> alt.Axis:
    """Ticks at powers of ten where the values span two or more, else as they fall."""
    known = [value for value in values if value is not None and value > 0]
    powers = range(math.ceil(math.log10(min(known))), math.floor(math.log10(max(known))) + 1) if known else range(0)
    return (
        alt.Axis(values=[10.0**power for power in powers], format=",~g") if len(powers) > 1 else alt.Axis(format=",~g")
    )


def line_legend(*, above_marks: bool = False) -> alt.Legend:
    """A legend that shows lines as lines, with their dashes; it leaves room for the names of step blocks if asked."""
    room = 26 if above_marks else alt.Undefined
    return alt.Legend(symbolType="stroke", symbolSize=300, symbolOpacity=1, offset=room)


def block_axis(title: str = "residual block (odd: attention, even: FFN)") -> alt.X:
    """The horizontal axis of charts over residual blocks."""
    return alt.X(
        "block:Q", title=title, scale=alt.Scale(nice=False, zero=False), axis=alt.Axis(tickMinStep=1, grid=False)
    )


def lines(
    field: str,
    names: Sequence[str],
    x: alt.X,
    y: alt.Y,
    tips: Sequence[str | alt.Tooltip],
    *,
    hues: Sequence[str] | None = None,
    size: int = 20,
    opacity: float = 1.0,
    legend: bool = True,
    marks: alt.LayerChart | None = None,
    over: Sequence[alt.Chart] = (),
    height: int = HEIGHT,
) -> alt.LayerChart:
    """A line for each name, with points that say where they are unless there are no tips; many take long to draw.

    marks: a layer below, whose labels stand above the chart; over: layers on top.
    """
    shown = line_legend(above_marks=marks is not None) if legend else None
    scale = colours(names, hues)
    base = drawing().encode(x, y, alt.Color(f"{field}:N", title=None, scale=scale, sort=list(names), legend=shown))
    line = base.mark_line(strokeWidth=2)
    if legend:
        dash = alt.StrokeDash(f"{field}:N", title=None, scale=dashes(names), sort=list(names))
        line = line.encode(dash)
    points = base.mark_point(filled=True, size=size, opacity=opacity).encode(tooltip=list(tips)) if tips else None
    return layered(marks, line, points, *over, height=height)


def scatter(x: alt.X, y: alt.Y, kinds: Sequence[str], tips: Sequence[str]) -> alt.Chart:
    """Points of two kinds, told apart by colour and shape."""
    return drawing().mark_point(filled=True, size=36, opacity=0.75).encode(
        x, y,
        alt.Color("kind:N", title=None, scale=colours(kinds, [ORANGE, BLUE])),
        alt.Shape("kind:N", title=None, scale=alt.Scale(domain=list(kinds), range=["circle", "triangle-up"])),
        tooltip=[f"{tip}:N" for tip in tips],
    )  # fmt: skip


def step_marks(up: Sequence[int], down: Sequence[int]) -> alt.LayerChart | None:
    """Vertical rules where step blocks are, ▲ up and ▼ down, named above the chart; None where there are none."""
    rows = [{"block": block, "label": f"▲{block}"} for block in up]
    rows += [{"block": block, "label": f"▼{block}"} for block in down]
    if not rows:
        return None
    data = inline([{**row, "line": index % 2} for index, row in enumerate(rows)])
    base = alt.Chart(data).encode(alt.X("block:Q"))
    rule = base.mark_rule(strokeDash=[3, 3], opacity=0.8)
    labels = [
        base.mark_text(dy=-7 - 11 * line, fontSize=10)
        .encode(alt.Text("label:N"), y=alt.value(0))
        .transform_filter(f"datum.line === {line}")
        for line in range(min(2, len(rows)))
    ]
    return alt.LayerChart(layer=[rule, *labels])


def layered(*layers: alt.Chart | alt.LayerChart | None, height: int = HEIGHT) -> alt.LayerChart:
    """Layers without the absent ones."""
    return alt.LayerChart(layer=[layer for layer in layers if layer is not None]).properties(height=height)
