"""What the page shows of one head when it is picked: importance by position, distance, logit gap, its plane."""

from typing import Any

import numpy as np

from spikesink.records import Anatomy, SinkHead
from spikesink.records import anatomy as sections
from spikesink.report.drawing import rounded
from spikesink.report.format import number, percent
from spikesink.report.geometry import KINDS
from spikesink.report.sinks import head_id, strongest_head

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
        facts[key] = sum((found.get(key, []) for found in further), _sink(head))
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


def _section(record: Anatomy, name: str) -> Any:
    return (record.model_extra or {}).get(name)


def _traces(record: Anatomy) -> dict[str, Facts]:
    """By the head's id; nothing where `heads` was not measured."""
    section = _section(record, "heads")
    if not isinstance(section, sections.Heads):
        return {}
    return {head_id(head.block, head.head): _trace(section, head) for head in section.heads}


def _trace(section: sections.Heads, found: sections.HeadTrace) -> Facts:
    facts = [("mass on sinks", percent(found.sink_mass)), ("entropy", f"{number(found.entropy_nats)} nats")]
    if found.distance is not None:
        uniform = section.uniform_distance.get(found.block)
        facts.append(("distance without the sink", f"{number(found.distance)} tokens (uniform {number(uniform)})"))
    if found.value_norm_sink is not None:
        both = f"{number(found.value_norm_sink)} against {number(found.value_norm_other)}"
        facts.append(("value norm, sink against others", both))
    if found.write_norm is not None:
        facts.append(
            ("write norm", f"{number(found.write_norm)} ({number(found.write_norm_without)} without the sink)")
        )
    return facts


def _gaps(record: Anatomy) -> dict[str, Facts]:
    """By the head's id; nothing where `geometry` was not measured."""
    section = _section(record, "geometry")
    if not isinstance(section, sections.Geometry):
        return {}
    return {head_id(gap.block, gap.head): _gap(gap) for gap in section.gaps}


def _gap(found: sections.LogitGap) -> Facts:
    parts = (
        f"content {number(found.content)}, distance {number(found.distance)}; ± {number(found.gap_std)} over queries"
    )
    cosines = f"{number(found.cosine_sink)}; others {number(found.cosine_other)}"
    return [("logit gap", f"{number(found.gap)} ({parts})"), ("cosine of query and sink key", cosines)]


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
    return {"kinds": [KINDS[int(kind)] for kind in kinds], "heads": planes}
