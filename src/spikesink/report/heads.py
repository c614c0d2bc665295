"""What a sink does to its head: the range it looks at, and how much it writes. Spec section 3."""

import altair as alt
import numpy as np

from spikesink.records import Anatomy
from spikesink.records import anatomy as sections
from spikesink.report.conditions import conditions
from spikesink.report.document import Merit, Section
from spikesink.report.drawing import Figure, inline, layered, scatter, table
from spikesink.report.format import interval, number, percent

KINDS = ("sink head", "other head")
NAMES = {"distance": "distance", "distance_by_mass": "distance by mass", "write_norm": "write norm",
         "entropy_nats": "entropy"}  # fmt: skip
"""What a sink's mass goes with, over heads."""
CHANGED = {"write": "the norm of the write", "distance": "distance"}
"""What it goes with inside a head."""


def heads_part(record: Anatomy, section: sections.Heads) -> Section:
    """What the heads' section of the record says."""
    merits = [
        Merit(f"sink mass and {NAMES.get(found.other, found.other)}", found.over_heads.value, low=found.over_heads.low,
              high=found.over_heads.high, note=f"rank correlation; within layers {interval(found.within_layers)}")
        for found in section.correlations
    ]  # fmt: skip
    merits += [
        Merit(f"sink mass and {CHANGED.get(found.other, found.other)} within heads", found.mean.value,
              low=found.mean.low, high=found.mean.high,
              note=f"mean correlation over queries at one position; negative in {percent(found.negative_share)} of "
              f"{found.mean.n} heads")
        for found in section.modulation or []
    ]  # fmt: skip
    merits += _loss(section.loss_test) if section.loss_test is not None else []
    return Section(
        "heads",
        "What the sink does to its head",
        "The mass on the sink turns the head's output down; what is left decides where the head looks.",
        merits=merits,
        figures=heads_figures(record, section),
        note=f"The effect on the loss does not apply: {section.loss_reason}." if section.loss_reason else "",
    )


def _loss(found: sections.LossTest) -> list[Merit]:
    """The signed effect on the loss, and that of random directions of the same length."""
    sink, control, difference = found.sink_nats, found.control_nats, found.difference_nats
    note = f"mean rise of the loss, {found.heads} heads, {found.tokens:,} tokens; differs from 0 in "
    note += f"{found.sink_rejected} of them (Holm); a random direction {interval(control)}, {found.control_rejected}"
    against = f"sink less random, over {found.sequences:,} sequences; p = {number(found.difference_p_value)}"
    return [
        Merit("without a head's sink part", sink.value, "nats", low=sink.low, high=sink.high, note=note),
        Merit("more than a random part", difference.value, "nats", low=difference.low, high=difference.high,
              note=against),
    ]  # fmt: skip


def heads_figures(record: Anatomy, section: sections.Heads) -> list[Figure]:
    if not section.heads:
        return []
    figures = [_distance(record, section)]
    return figures if section.writes_reason else [*figures, _writes(record, section)]


def _kind(record: Anatomy) -> dict[tuple[int, int], str]:
    return {(head.block, head.head): KINDS[0] if head.is_sink else KINDS[1] for head in record.sinks.heads}


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
    points = scatter(
        alt.X("sink_mass:Q", title="attention mass on sinks", scale=alt.Scale(domain=[0, 1])),
        alt.Y("distance:Q", title="distance to the other keys, tokens", scale=alt.Scale(domainMin=0)),
        KINDS,
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
        f"sink taken out; dashed: a head that attends uniformly. {correlation}".rstrip(),
        conditions=conditions(record),
        alternative=f"Scatter of attention distance against sink mass. {correlation}".rstrip(),
    )


def _both(found: sections.HeadCorrelation) -> str:
    over, within = found.over_heads, found.within_layers
    return f"{interval(over)} over {over.n} heads, within layers {interval(within)}"


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
    points = scatter(
        alt.X("sink_mass:Q", title="attention mass on sinks", scale=alt.Scale(domain=[0, 1])),
        alt.Y("kept:Q", title="write norm, as a share of that without a sink", axis=alt.Axis(format="%")),
        KINDS,
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
        f"keys instead; below 1, the sink turns the head down; {text}.",
        conditions=conditions(record),
        alternative=f"Scatter of the share of the write norm that is left against sink mass; {text}.",
    )
