"""What a sink does to its head: the range it looks at, and how much it writes. Spec section 3."""

import altair as alt
import numpy as np

from spikesink.records import Anatomy
from spikesink.records import anatomy as sections
from spikesink.report.charts.base import BLUE, ORANGE, Figure, colours, drawing, inline, layered, table
from spikesink.report.conditions import conditions
from spikesink.report.words import interval, number

KINDS = ("sink head", "other head")


def heads_figures(record: Anatomy, section: sections.Heads) -> list[Figure]:
    if not section.heads:
        return []
    figures = [_distance(record, section)]
    return figures if section.writes_reason else [*figures, _writes(record, section)]


def _kind(record: Anatomy) -> dict[tuple[int, int], str]:
    return {(head.block, head.head): KINDS[0] if head.is_sink else KINDS[1] for head in record.sinks.heads}


def _points(x: alt.X, y: alt.Y, tips: list[str]) -> alt.Chart:
    return drawing().mark_point(filled=True, size=36, opacity=0.75).encode(
        x, y,
        alt.Color("kind:N", title=None, scale=colours(KINDS, [ORANGE, BLUE])),
        alt.Shape("kind:N", title=None, scale=alt.Scale(domain=list(KINDS), range=["circle", "triangle-up"])),
        tooltip=[f"{tip}:N" for tip in tips],
    )  # fmt: skip


def _distance(record: Anatomy, section: sections.Heads) -> Figure:
    kinds = _kind(record)
    rows = [
        {
            "block": head.block, "head": head.head, "kind": kinds.get((head.block, head.head), KINDS[1]),
            "sink_mass": head.sink_mass, "distance": head.distance, "distance_by_mass": head.distance_by_mass,
            "entropy_nats": head.entropy_nats,
        }
        for head in section.heads
    ]  # fmt: skip
    uniform = float(np.mean(list(section.uniform_distance.values())))
    points = _points(
        alt.X("sink_mass:Q", title="attention mass on sinks", scale=alt.Scale(domain=[0, 1])),
        alt.Y("distance:Q", title="distance to the other keys, tokens", scale=alt.Scale(domainMin=0)),
        ["block", "head", "kind", "sink_mass", "distance", "distance_by_mass", "entropy_nats"],
    )
    rule = alt.Chart(inline([{"uniform": uniform}])).mark_rule(strokeDash=[4, 3]).encode(alt.Y("uniform:Q"))
    found = next((item for item in section.correlations if item.other == "distance"), None)
    correlation = f"Rank correlation {_both(found)}. " if found else ""
    return Figure(
        name="sink_distance",
        title="Where a head looks with what the sink leaves it",
        chart=layered(points, rule),
        rows=table(rows),
        caption=f"One point a head, mean over {section.queries:,} queries: distance between query and key with the "
        f"sink taken out; dashed: a head that attends uniformly. {correlation}{conditions(record)}",
        alternative=f"Scatter of attention distance against sink mass. {correlation}".rstrip(),
    )


def _both(found: sections.HeadCorrelation) -> str:
    over, within = found.over_heads, found.within_layers
    return (
        f"{interval(over.value, over.low, over.high)} over {over.n} heads, within layers "
        f"{interval(within.value, within.low, within.high)}"
    )


def _writes(record: Anatomy, section: sections.Heads) -> Figure:
    kinds = _kind(record)
    rows = [
        {
            "block": head.block, "head": head.head, "kind": kinds.get((head.block, head.head), KINDS[1]),
            "sink_mass": head.sink_mass, "write_norm": head.write_norm, "renormalised": head.write_norm_renormalised,
            "kept": head.write_norm / head.write_norm_renormalised,
        }
        for head in section.heads
        if head.write_norm is not None and head.write_norm_renormalised
    ]  # fmt: skip
    points = _points(
        alt.X("sink_mass:Q", title="attention mass on sinks", scale=alt.Scale(domain=[0, 1])),
        alt.Y("kept:Q", title="write norm, as a share of that without a sink", axis=alt.Axis(format="%")),
        ["block", "head", "kind", "sink_mass", "write_norm", "renormalised", "kept"],
    )
    strong = [row["kept"] for row in rows if row["sink_mass"] > 0.5]
    text = f"median {number(float(np.median(strong)))} over {len(strong)} heads with mass above 0.5" if strong else ""
    return Figure(
        name="sink_writes",
        title="How far the sink turns a head down",
        chart=layered(points, alt.Chart(inline([{"one": 1.0}])).mark_rule(strokeDash=[4, 3]).encode(alt.Y("one:Q"))),
        rows=table(rows),
        caption="Norm of what a head adds to the residual stream, over its norm when the sink's mass goes to the other "
        f"keys instead; below 1, the sink turns the head down; {text}. {conditions(record)}",
        alternative=f"Scatter of the share of the write norm that is left against sink mass; {text}.",
    )
