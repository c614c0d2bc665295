"""Queries and keys of sinks: the plane of one head, the logit gap over heads, the rank of sink keys. Figure 6."""

import altair as alt
import numpy as np

from spikesink.positions import placed
from spikesink.records import Anatomy
from spikesink.records.sections import geometry as sections
from spikesink.report.document import Merit, Part
from spikesink.report.drawing import BLUE, GREY, ORANGE, Figure, Rows, colours, drawing, layered, scatter, table
from spikesink.report.format import interval, number, percent

KINDS = ("query", "sink key", "other key")
SHAPES = ("cross", "circle", "triangle-up")


def geometry_part(record: Anatomy, section: sections.Geometry) -> Part:
    """What the geometry's section of the record says."""
    merits = []
    if section.keys:
        sink, other = _median_ranks(section)
        merits.append(Merit("effective rank of sink keys", sink, note=f"median; as many other keys {number(other)}"))
        for name, which in (("first tokens", "first"), ("later tokens", "later")):
            ranks = [rank for key in section.keys if (rank := getattr(key, which)) is not None]
            if ranks:
                own, control = (
                    float(np.median([getattr(rank, part) for rank in ranks])) for part in ("rank", "rank_other")
                )
                note = f"median over KV heads, {ranks[0].n} keys; as many other keys {number(control)}"
                merits.append(Merit(f"rank of sink keys of {name}", own, note=note))
    if section.key_parts:
        merits.append(_key_parts(section.key_parts))
    for label, is_sink in (("logit gap of sink heads", True), ("logit gap of other heads", False)):
        gaps = [gap for gap in section.gaps if gap.is_sink == is_sink]
        if gaps:
            gap, content, distance = (
                float(np.mean([getattr(gap, name) for gap in gaps])) for name in ("gap", "content", "distance")
            )
            merits.append(Merit(label, gap, note=f"mean: content {number(content)} + distance {number(distance)}"))
    return Part(
        "geometry",
        "Why queries find the sink",
        "A head sinks when its queries lie closer to the sink's key than to the others. Before the rotary embedding.",
        merits=merits,
        figures=geometry_figures(record, section),
    )


def _key_parts(parts: list[sections.KeyPart]) -> Merit:
    """Eq. 26: a spike token's key is a sum of few columns of W_K; the mean over blocks, by the first few channels."""
    few = min(3, len(parts[0].explained))
    own, other = (
        [float(np.mean([getattr(part, name)[count] for part in parts])) for count in (0, few - 1)]
        for name in ("explained", "explained_other")
    )
    leading = [part.channels[0] for part in parts]
    channel = max(set(leading), key=leading.count)
    note = f"of spike tokens' key energy by {few} columns of W_K, {percent(own[0])} by one (channel {channel} in "
    note += f"{leading.count(channel)} of {len(parts)} blocks); other keys, by their own: {percent(other[1])}, "
    return Merit("keys explained", own[1], "%", note=note + percent(other[0]))


def _median_ranks(section: sections.Geometry) -> tuple[float, float]:
    """Of sink keys and of as many other keys, over KV heads."""
    sink, other = (np.median([getattr(key, name) for key in section.keys]) for name in ("rank_sink", "rank_other"))
    return float(sink), float(other)


def geometry_figures(record: Anatomy, section: sections.Geometry) -> list[Figure]:
    """The charts of the section."""
    planes = [_plane(record, section, plane) for plane in section.planes]
    return [
        *planes,
        *([_gaps(record, section)] if section.gaps else []),
        *([_ranks(record, section)] if section.keys else []),
    ]


def plane_chart() -> alt.LayerChart:
    """Points in a plane, told apart by colour and shape."""
    scale = colours(KINDS, [BLUE, ORANGE, GREY])
    points = drawing().mark_point(filled=True, size=32, opacity=0.75).encode(
        alt.X("x:Q", title="1st principal component"),
        alt.Y("y:Q", title="2nd principal component"),
        alt.Color("kind:N", title=None, scale=scale),
        alt.Shape("kind:N", title=None, scale=alt.Scale(domain=list(KINDS), range=list(SHAPES))),
        tooltip=["kind:N", alt.Tooltip("x:Q", format=".3g"), alt.Tooltip("y:Q", format=".3g")],
    )  # fmt: skip
    return layered(points)


def _plane(record: Anatomy, section: sections.Geometry, plane: sections.KeyPlane) -> Figure:
    points = record.arrays[f"geometry.{plane.name}_points"]
    kinds = record.arrays[f"geometry.{plane.name}_kinds"]
    keep = _some(kinds)
    rows = plane_rows(points[keep], kinds[keep])
    what = "the strongest sink head" if plane.name == "sink_head" else "the head that sinks least"
    return Figure(
        name=f"plane_{plane.name}",
        title=f"Queries and keys of {what} (block {placed(plane.block)}, head {plane.head})",
        chart=plane_chart(),
        rows=rows,
        caption=f"Before the rotary embedding, in the plane of their two principal components, which holds "
        f"{percent(plane.explained)} of the variance; importance {number(plane.importance)}; {len(rows)} of "
        f"{len(points)} points drawn, from {section.sequences} sequences.",
        alternative=f"Scatter of queries, sink keys and other keys of {what}.",
    )


def _some(kinds: np.ndarray, most: int = 150) -> np.ndarray:
    """Indices of at most so many points of each kind, spread evenly."""
    picked = []
    for kind in range(len(KINDS)):
        members = np.nonzero(kinds == kind)[0]
        picked.append(
            members[np.linspace(0, len(members) - 1, min(most, len(members))).astype(int)] if len(members) else members
        )
    return np.concatenate(picked)


def plane_rows(points: np.ndarray, kinds: np.ndarray) -> Rows:
    """Points (point, 2) with the names of their kinds (point,), as rows."""
    return table(
        {"kind": KINDS[int(kind)], "x": float(x), "y": float(y)} for (x, y), kind in zip(points, kinds, strict=True)
    )


def _gaps(record: Anatomy, section: sections.Geometry) -> Figure:
    importance = {(head.block, head.head): head.max_importance for head in record.sinks.heads}
    rows = [
        {
            "block": gap.block, "head": gap.head, "kind": "sink head" if gap.is_sink else "other head", "gap": gap.gap,
            "content": gap.content, "distance": gap.distance, "std": gap.gap_std,
            "importance": importance.get((gap.block, gap.head)),
        }
        for gap in section.gaps
    ]  # fmt: skip
    chart = scatter(
        alt.X("gap:Q", title="logit gap: sink key less the others"),
        alt.Y("importance:Q", title="largest importance", scale=alt.Scale(domainMin=0)),
        ("sink head", "other head"),
        ("block", "head", "kind", "gap", "content", "distance", "std"),
    )
    correlation = section.gap_and_sink
    return Figure(
        name="logit_gap",
        title="Do heads sink whose queries lie closer to the sink key?",
        chart=layered(chart),
        rows=table(rows),
        caption=f"One point a head: mean over {section.queries:,} queries. Rank correlation "
        f"{interval(correlation)} over {correlation.n} heads (95 % bootstrap interval over layers).",
        alternative=f"Scatter of importance against logit gap; rank correlation {number(correlation.value)}.",
    )


def _ranks(record: Anatomy, section: sections.Geometry) -> Figure:
    rows = [
        {
            "block": key.block, "kv_head": key.kv_head, "rank_sink": key.rank_sink, "rank_other": key.rank_other,
            "kind": "all sink keys", "n": key.n,
        }
        for key in section.keys
    ]  # fmt: skip
    rows += [
        {
            "block": key.block, "kv_head": key.kv_head, "rank_sink": key.rank_spike, "rank_other": key.rank_other,
            "kind": "of spike tokens", "n": key.n_spike,
        }
        for key in section.keys
        if key.rank_spike is not None
    ]  # fmt: skip
    kinds = ("all sink keys", "of spike tokens")
    chart = scatter(
        alt.X("rank_other:Q", title="effective rank of as many other keys"),
        alt.Y("rank_sink:Q", title="effective rank of sink keys", scale=alt.Scale(domainMin=0)),
        kinds,
        ("block", "kv_head", "kind", "n", "rank_sink", "rank_other"),
    )
    medians = _median_ranks(section)
    return Figure(
        name="key_ranks",
        title="How many directions sink keys span",
        chart=layered(chart),
        rows=table(rows),
        caption="One point a KV head; effective rank is exp of the entropy of the singular values. Medians: sink keys "
        f"{medians[0]:.1f}, as many other keys {medians[1]:.1f}; sinks are {section.sink_tokens.tokens} tokens.",
        alternative=f"Scatter of effective ranks: medians {medians[0]:.1f} for sink keys, {medians[1]:.1f} for others.",
    )
