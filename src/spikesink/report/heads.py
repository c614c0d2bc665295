"""What a sink does to its head: the range it looks at, and how much it writes. Spec section 3."""

from typing import Any

import altair as alt
import numpy as np

from spikesink.records import Anatomy, SinkHead
from spikesink.records.sections import heads as sections
from spikesink.records.sections.geometry import Geometry, LogitGap
from spikesink.report import geometry
from spikesink.report.document import Merit, Part
from spikesink.report.drawing import Figure, inline, layered, rounded, scatter, table
from spikesink.report.format import interval, number, percent
from spikesink.report.sinks import head_id, strongest_head

KINDS = ("sink head", "other head")
NAMES = {"distance": "distance", "distance_by_mass": "distance by mass", "write_norm": "write norm",
         "entropy_nats": "entropy"}  # fmt: skip
"""What a sink's mass goes with, over heads."""
CHANGED = {"write": "the norm of the write", "distance": "distance"}
"""What it goes with inside a head."""


def heads_part(record: Anatomy, section: sections.Heads) -> Part:
    """What the heads' section of the record says."""
    merits = [
        Merit(f"sink mass and {NAMES.get(row.other, row.other)}", row.over_heads.value, low=row.over_heads.low,
              high=row.over_heads.high, note=f"rank correlation; within layers {interval(row.within_layers)}")
        for row in section.correlations
    ]  # fmt: skip
    merits += [
        Merit(f"sink mass and {CHANGED.get(row.other, row.other)} within heads", row.mean.value,
              low=row.mean.low, high=row.mean.high,
              note=f"mean correlation over queries at one position; negative in {percent(row.negative_share)} of "
              f"{row.mean.n} heads")
        for row in section.modulation or []
    ]  # fmt: skip
    merits += _loss(section.loss_test) if section.loss_test is not None else []
    return Part(
        "heads",
        "What the sink does to its head",
        "Whether the mass on the sink turns the head's output down, and where the head looks with what is left.",
        merits=merits,
        figures=heads_figures(record, section),
        note=f"The effect on the loss does not apply: {section.loss_reason}." if section.loss_reason else "",
    )


def _loss(test: sections.LossTest) -> list[Merit]:
    """The signed effect on the loss, and that of random directions of the same length."""
    sink, control, difference = test.sink_nats, test.control_nats, test.difference_nats
    note = f"mean rise of the loss, {test.heads} heads, {test.tokens:,} tokens; differs from 0 in "
    note += f"{test.sink_rejected} of them (Holm); a random direction {interval(control)}, {test.control_rejected}"
    against = f"sink less random, over {test.sequences:,} sequences; p = {number(test.difference_p_value)}"
    return [
        Merit("without a head's sink part", sink.value, "nats", low=sink.low, high=sink.high, note=note),
        Merit("more than a random part", difference.value, "nats", low=difference.low, high=difference.high,
              note=against),
    ]  # fmt: skip


def heads_figures(record: Anatomy, section: sections.Heads) -> list[Figure]:
    """The charts of the section."""
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
    by_distance = next((item for item in section.correlations if item.other == "distance"), None)
    correlation = f"Rank correlation {_both(by_distance)}. " if by_distance else ""
    return Figure(
        name="sink_distance",
        title="Where a head looks with what the sink leaves it",
        chart=layered(points, rule),
        rows=table(rows),
        caption=f"One point a head, mean over {section.queries:,} queries: distance between query and key with the "
        f"sink taken out; dashed: a head that attends uniformly. {correlation}".rstrip(),
        alternative=f"Scatter of attention distance against sink mass. {correlation}".rstrip(),
    )


def _both(correlation: sections.HeadCorrelation) -> str:
    over, within = correlation.over_heads, correlation.within_layers
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
        alternative=f"Scatter of the share of the write norm that is left against sink mass; {text}.",
    )


SCALE = 1000
"""Importances are sent as whole thousandths of a head's largest, points as thousandths of its farthest coordinate."""

Facts = list[tuple[str, str]]
"""Label and value of what is known of a head."""


def head_details(record: Anatomy) -> dict[str, Any]:
    """Everything about every head, compact, for the page's script."""
    rows = {int(block): index for index, block in enumerate(record.arrays["attention_blocks"])}
    further = (_traces(record), _gaps(record))
    facts, importance = {}, {}
    for head in record.sinks.heads:
        key = head_id(head.block, head.head)
        facts[key] = sum((measured.get(key, []) for measured in further), _sink(head))
        values = record.arrays["key_importance"][rows[head.block], head.head]
        importance[key] = _packed(values[np.isfinite(values)])
    strongest = strongest_head(record)
    return {
        "strongest": head_id(strongest.block, strongest.head),
        "facts": facts,
        "importance": importance,
        "planes": _planes(record),
    }


def _packed(values: np.ndarray) -> dict[str, Any]:
    largest = float(np.abs(values).max()) if values.size else 0.0
    scaled = np.rint(values / (largest or 1.0) * SCALE).astype(int)
    return {"unit": rounded(largest / SCALE), "values": scaled.reshape(-1).tolist()}


def _sink(head: SinkHead) -> Facts:
    return [
        ("sink head", f"{'yes' if head.is_sink else 'no'}, in {percent(head.sink_rate)} of the sequences"),
        ("largest importance", number(head.max_importance)),
        ("importance of the first key", number(head.first_key_importance)),
    ]


def _traces(record: Anatomy) -> dict[str, Facts]:
    """By the head's id; nothing where `heads` was not measured."""
    section = record.further("heads")
    if not isinstance(section, sections.Heads):
        return {}
    return {head_id(head.block, head.head): _trace(section, head) for head in section.heads}


def _trace(section: sections.Heads, trace: sections.HeadTrace) -> Facts:
    facts = [("mass on sinks", percent(trace.sink_mass)), ("entropy", f"{number(trace.entropy_nats)} nats")]
    if trace.distance is not None:
        uniform = section.uniform_distance.get(trace.block)
        facts.append(("distance without the sink", f"{number(trace.distance)} tokens (uniform {number(uniform)})"))
    if trace.value_norm_sink is not None:
        both = f"{number(trace.value_norm_sink)} against {number(trace.value_norm_other)}"
        facts.append(("value norm, sink against others", both))
    if trace.write_norm is not None:
        facts.append(
            ("write norm", f"{number(trace.write_norm)} ({number(trace.write_norm_without)} without the sink)")
        )
    return facts


def _gaps(record: Anatomy) -> dict[str, Facts]:
    """By the head's id; nothing where `geometry` was not measured."""
    section = record.further("geometry")
    if not isinstance(section, Geometry):
        return {}
    return {head_id(gap.block, gap.head): _gap(gap) for gap in section.gaps}


def _gap(gap: LogitGap) -> Facts:
    parts = f"content {number(gap.content)}, distance {number(gap.distance)}; ± {number(gap.gap_std)} over queries"
    cosines = f"{number(gap.cosine_sink)}; others {number(gap.cosine_other)}"
    return [("logit gap", f"{number(gap.gap)} ({parts})"), ("cosine of query and sink key", cosines)]


def _planes(record: Anatomy) -> dict[str, Any] | None:
    """A few queries and keys of every head in its own plane; None where geometry was not measured."""
    points = record.arrays.get("geometry.head_points")
    if points is None:
        return None
    kinds = record.arrays["geometry.head_kinds"]
    explained = record.arrays["geometry.head_explained"]
    planes = {}
    for index, block in enumerate(record.arrays["geometry.head_blocks"]):
        for head in range(points.shape[1]):
            if np.isfinite(points[index, head]).all():
                share = percent(float(explained[index, head]))
                planes[head_id(int(block), head)] = {**_packed(points[index, head]), "explained": share}
    return {"kinds": [geometry.KINDS[int(kind)] for kind in kinds], "heads": planes}
