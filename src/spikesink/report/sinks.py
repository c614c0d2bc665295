"""Which heads sink: the layer x head map, and one head's importance by position."""

import math

import altair as alt
import numpy as np

from spikesink.positions import placed
from spikesink.records import Anatomy, SinkHead
from spikesink.records.scan import SinkRatio
from spikesink.report.document import Merit, Part
from spikesink.report.drawing import (
    BLUE,
    HEIGHT,
    ORANGE,
    RAMP,
    Figure,
    Rows,
    Sketch,
    drawing,
    inline,
    layered,
    lines,
    table,
)
from spikesink.report.format import number, percent
from spikesink.report.geometry import plane_chart, plane_rows

PICKED = "picked"
"""Name of the chart's parameter that holds the id of the head that was clicked."""


SHADES = " ·░▒▓█"
MAP_ROWS = 32
"""Rows of the sketched map; models with more heads show the strongest of several in one row."""


def sinks_part(record: Anatomy) -> Part:
    """What the sinks of the record say."""
    summary, sinks = record.summary, record.sinks
    metrics = f"sun2026 {percent(summary.sink_ratio_sun2026)}, first key alone {percent(summary.sink1_gu2025)}"
    uniform = f"uniform attention gives {number(sinks.uniform_first_key)}"
    merits = [
        Merit("sink ratio, gu2025", summary.sink_ratio_gu2025, "%", note=metrics),
        Merit("importance of the first key", sinks.first_key_importance, note=uniform),
    ]
    if sinks.virtual_mass is not None:
        merits.append(Merit("attention on virtual keys", sinks.virtual_mass, "%", note="counted apart"))
    return Part(
        "sinks",
        "Where attention sinks",
        "Click a cell, or choose a head with the fields below the map, to see what is known of that head.",
        merits=merits,
        figures=[sink_map(record), head_importance(record), *head_plane(record), *ratio_curves(record)],
        label="Sink heads",
        template="heads",
        content=sorted({head.block for head in sinks.heads}),
    )


METRIC_NAMES = {"sun2026": "Sun et al. 2026", "gu2025": "Gu et al. 2025"}


def ratio_curves(record: Anatomy) -> list[Figure]:
    """The sink ratio under other thresholds and other lengths: how far it is a matter of choice."""
    sinks = record.sinks
    curves = (("epsilon", "ε", "threshold ε on importance", sinks.by_epsilon),
              ("tokens", "length", "tokens of a sequence", sinks.by_tokens))  # fmt: skip
    return [
        _ratio_curve(record, *curve) for curve in curves if len({getattr(entry, curve[0]) for entry in curve[3]}) > 1
    ]


def _ratio_curve(record: Anatomy, field: str, what: str, axis: str, entries: list[SinkRatio]) -> Figure:
    rows: Rows = [
        {field: getattr(entry, field), "metric": label, "ratio": getattr(entry, name)}
        for entry in entries
        for name, label in METRIC_NAMES.items()
        if getattr(entry, name) is not None
    ]
    x = alt.X(f"{field}:Q", title=axis, scale=alt.Scale(zero=False), axis=alt.Axis(grid=False))
    y = alt.Y("ratio:Q", title="sink ratio", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    tips = [f"{field}:Q", "metric:N", alt.Tooltip("ratio:Q", format=".1%")]
    return Figure(
        name=f"sink_ratio_by_{field}",
        title=f"Sink ratio by {what}",
        chart=lines("metric", list(METRIC_NAMES.values()), x, y, tips, size=24, height=HEIGHT - 80),
        rows=table(rows),
        caption=f"Share of heads and sequences that sink, by {axis}; this record's ratio is at ε = "
        f"{record.sinks.epsilon:g}. {record.sinks.ratio_reason or ''}".strip(),
        alternative=f"Line chart of the sink ratio by {axis}, under two metrics.",
    )


def _sketch(record: Anatomy) -> Sketch:
    """Head x layer map: shade = largest importance over the first half of the keys, sink heads in colour."""
    layers: dict[int, list[SinkHead]] = {}
    for head in record.sinks.heads:
        layers.setdefault(head.block, []).append(head)
    n_heads = max(len(heads) for heads in layers.values())
    per_row = math.ceil(n_heads / MAP_ROWS)
    rows = []
    for start in range(0, n_heads, per_row):
        groups = [heads[start : start + per_row] for heads in layers.values()]
        rows.append([(f"{start:>3} ", "dim"), *[_cell(group) for group in groups]])
    blocks = list(layers)
    legend = f"    head (down) by attention block {blocks[0]} to {blocks[-1]} (across);"
    shades = f"    shade = importance {' '.join(SHADES[1:])} up to 1, colour = sink head"
    return [*rows, [(legend, "dim")], [(shades, "dim")]]


def _cell(group: list[SinkHead]) -> tuple[str, str]:
    strongest = max((head.max_importance for head in group), default=0.0)
    shade = SHADES[min(len(SHADES) - 1, int(strongest * len(SHADES)))]
    return shade, "magenta" if any(head.is_sink for head in group) else "dim"


def head_id(block: int, head: int) -> str:
    """The id of a head on the page."""
    return f"{block}-{head}"


def sink_map(record: Anatomy) -> Figure:
    """One cell a head: its largest importance over the first half of the keys; a dot marks sink heads."""
    rows = [
        {
            "id": head_id(head.block, head.head), "block": head.block, "head": head.head,
            "importance": head.max_importance, "first": head.first_key_importance, "rate": head.sink_rate,
            "sink": "yes" if head.is_sink else "no",
        }
        for head in record.sinks.heads
    ]  # fmt: skip
    heads = max((head.head for head in record.sinks.heads), default=0) + 1
    x = alt.X("block:O", title="attention block", axis=alt.Axis(labelAngle=0, ticks=False, domain=False))
    y = alt.Y("head:O", title="head", axis=alt.Axis(ticks=False, domain=False))
    colour = alt.Color(
        "importance:Q", title="largest importance", scale=alt.Scale(scheme=RAMP, domain=[0, 1]),
        legend=alt.Legend(gradientLength=160, format=".1f"),
    )  # fmt: skip
    strongest = strongest_head(record)
    picked = alt.param(name=PICKED, value=head_id(strongest.block, strongest.head))
    chosen = f"datum.id === {PICKED}"
    tips = [
        alt.Tooltip("block:O", title="block"), alt.Tooltip("head:O", title="head"),
        alt.Tooltip("sink:N", title="sink head"),
        alt.Tooltip("importance:Q", title="largest importance", format=".3f"),
        alt.Tooltip("first:Q", title="first key", format=".3f"),
        alt.Tooltip("rate:Q", title="share of sequences", format=".0%"),
    ]  # fmt: skip
    cells = drawing().mark_rect(cursor="pointer").encode(
        x, y, colour, tooltip=tips,
        stroke=alt.condition(chosen, alt.value(ORANGE), alt.value(None)),
        strokeWidth=alt.condition(chosen, alt.value(3), alt.value(0)),
    ).add_params(picked)  # fmt: skip
    dots = (
        drawing()
        .mark_point(filled=True, size=14, opacity=1, cursor="pointer", stroke="white", strokeWidth=0.5)
        .encode(x, y, color=alt.value("#111"), tooltip=tips)
        .transform_filter("datum.sink === 'yes'")
    )
    summary = record.summary
    return Figure(
        name="sink_map",
        wide=True,
        key=True,
        sketch=_sketch(record),
        title="Which heads sink",
        chart=layered(cells, dots, height=min(520, max(120, 20 * heads))),
        rows=table(rows),
        caption="Colour: largest importance of a key in the first half, averaged over sequences (1 = all attention). "
        f"Dot: a sink head under {record.sinks.metric}, ε = {record.sinks.epsilon:g}, in at least "
        f"{percent(record.sinks.sink_rate_min)} of the sequences.",
        alternative=f"Map of {summary.head_count} heads by block; {summary.sink_head_count} are sink heads. The "
        f"strongest is head {strongest.head} of block {placed(strongest.block)} with importance "
        f"{number(strongest.max_importance)}. The fields below the map pick a head without a mouse.",
    )


def strongest_head(record: Anatomy) -> SinkHead:
    """The head with the largest importance of a key."""
    return max(record.sinks.heads, key=lambda head: head.max_importance)


def importance_rows(record: Anatomy, block: int, head: int) -> Rows:
    """Importance of each key of one head, averaged over sequences."""
    index = int(np.nonzero(record.arrays["attention_blocks"] == block)[0][0])
    values = record.arrays["key_importance"][index, head]
    return table({"position": key, "importance": float(value)} for key, value in enumerate(values) if value == value)


def head_importance(record: Anatomy) -> Figure:
    """Importance by key position of the strongest head; on the page, of the head that was picked."""
    head = strongest_head(record)
    rows = importance_rows(record, head.block, head.head)
    keys, axis = record.arrays["key_importance"].shape[-1], alt.Axis(grid=False, tickMinStep=1)
    bars = drawing().mark_bar(color=BLUE).encode(
        alt.X("position:Q", title="key position", scale=alt.Scale(domain=[-0.5, keys - 0.5], nice=False), axis=axis),
        alt.Y("importance:Q", title="importance", scale=alt.Scale(domainMin=0)),
        tooltip=["position:Q", alt.Tooltip("importance:Q", format=".4f")],
    )  # fmt: skip
    limit = alt.Chart(inline([{"limit": record.sinks.epsilon}])).mark_rule(strokeDash=[4, 3], color=ORANGE)
    return Figure(
        name="head_importance",
        title=f"Importance by key position: block {placed(head.block)}, head {head.head}",
        chart=layered(bars, limit.encode(alt.Y("limit:Q")), height=HEIGHT - 80),
        rows=rows,
        caption=f"Mean attention that each key gets, α_k = (1/T) Σ_t A[t, k]; dashed: ε = {record.sinks.epsilon:g}.",
        alternative=f"Bar chart of importance over {len(rows)} key positions for one head.",
    )


def head_plane(record: Anatomy) -> list[Figure]:
    """The plane of the strongest head, from the points that every head has; on the page, of the picked head."""
    if "geometry.head_points" not in record.arrays:
        return []
    strongest = strongest_head(record)
    row = int(np.nonzero(record.arrays["geometry.head_blocks"] == strongest.block)[0][0])
    rows = plane_rows(record.arrays["geometry.head_points"][row, strongest.head], record.arrays["geometry.head_kinds"])
    figure = Figure(
        name="head_plane",
        title=f"Queries and keys: block {placed(strongest.block)}, head {strongest.head}",
        chart=plane_chart(),
        rows=rows,
        caption="Before the rotary embedding, in the plane of their two principal components: "
        f"{len(rows)} of the head's queries, sink keys and other keys.",
        alternative="Scatter of queries, sink keys and other keys of one head.",
    )
    return [figure]
