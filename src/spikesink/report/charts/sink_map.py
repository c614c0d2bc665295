"""Which heads sink: the layer x head map, and one head's importance by position."""

import altair as alt
import numpy as np

from spikesink.records import Anatomy, SinkHead
from spikesink.report.charts.base import BLUE, HEIGHT, ORANGE, RAMP, Figure, Rows, drawing, inline, layered, table
from spikesink.report.conditions import conditions
from spikesink.report.words import number, percent

PICKED = "picked"
"""Name of the chart's parameter that holds the id of the head that was clicked."""


def head_id(block: int, head: int) -> str:
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
        title="Which heads sink",
        chart=layered(cells, dots, height=min(520, max(120, 20 * heads))),
        rows=table(rows),
        caption="Colour: largest importance of a key in the first half, averaged over sequences (1 = all attention). "
        f"Dot: a sink head under {record.sinks.metric}, ε = {record.sinks.epsilon:g}, in at least "
        f"{percent(record.sinks.sink_rate_min)} of the sequences. {conditions(record)}",
        alternative=f"Map of {summary.head_count} heads by block; {summary.sink_head_count} are sink heads. The "
        f"strongest is head {strongest.head} of block {strongest.block} with importance "
        f"{number(strongest.max_importance)}. The fields below the map pick a head without a mouse.",
    )


def strongest_head(record: Anatomy) -> SinkHead:
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
        title=f"Importance by key position: block {head.block}, head {head.head}",
        chart=layered(bars, limit.encode(alt.Y("limit:Q")), height=HEIGHT - 80),
        rows=rows,
        caption=f"Mean attention that each key gets, α_k = (1/T) Σ_t A[t, k]; dashed: ε = {record.sinks.epsilon:g}. "
        f"{conditions(record)}",
        alternative=f"Bar chart of importance over {len(rows)} key positions for one head.",
    )
