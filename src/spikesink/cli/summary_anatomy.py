"""What the anatomy measures found, a few lines each, made for reading in a terminal."""

from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from spikesink.records import Anatomy, Section
from spikesink.records import anatomy as sections

LABEL_WIDTH = 13
"""Of the left column of every block, here and in `summary`."""
Rows = list[tuple[str, str]]


def anatomy_blocks(record: Anatomy) -> list[Table]:
    """A table per further measure in the record; one that does not apply shows its reason."""
    found: dict[str, Any] = record.model_extra or {}
    return [_block(name, section) for name, section in found.items() if isinstance(section, Section)]


def _block(name: str, section: Section) -> Table:
    if not section.applicable:
        rows: Rows = [("", f"not applicable: {section.reason}")]
    elif name in _ROWS:
        rows = _ROWS[name](section)
    else:
        rows = [("", "measured; see the record")]
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", width=LABEL_WIDTH)
    table.add_column()
    table.add_row(name.capitalize(), Text(rows[0][1] if not rows[0][0] else ""))
    for label, text in rows[1:] if not rows[0][0] else rows:
        table.add_row(f"  {label}", Text(text))
    return table


def _amplifier(section: sections.Amplifier) -> Rows:
    strongest = [f"{o.channel} in block {o.block} ({o.frobenius:,.4g})" for o in section.outliers[:3]]
    rows: Rows = [("", f"channels with the largest ||U||: {', '.join(strongest) or 'no outliers'}")]
    for step in section.steps:
        if step.channel != section.spike_channel:
            continue
        first = step.rank_one_first
        line = f"lambda* {step.eigenvalue:,.4g}, then {_number(step.next_eigenvalue)}; "
        line += f"predicts {_number(first.ratio)} x the true output at position 0 (n = {first.n})"
        rows.append((f"block {step.block}", line))
    if section.steps_reason:
        rows.append(("steps", f"none: {section.steps_reason}"))
    return rows


def _trigger(section: sections.Trigger) -> Rows:
    probe = section.probe
    count = next(count for count in probe.counts if count.criterion == probe.criterion)
    rows: Rows = [
        ("", f"{count.first_ratio:.2%} of {probe.items:,} items spike alone at position 0 (> {count.threshold:,.0f})")
    ]
    rows.append(("control", f"{count.later_ratio:.2%} of them behind a random prefix"))
    if probe.exceptions:
        listed = ", ".join(repr(item.text) for item in probe.exceptions[:6])
        rows.append(("exceptions", f"{probe.exception_count}: {listed}"))
    if section.first_token_map is not None and section.first_token_map.blocks:
        last = section.first_token_map.blocks[-1]
        line = f"|cos| with s* before block {last.block}: first token {_number(last.before_first)}, "
        line += f"others {_number(last.before_later)}"
        rows.append(("direction", line))
    else:
        rows.append(("direction", f"not applicable: {section.first_token_reason or 'no early attention block'}"))
    if section.self_sinking is None:
        rows.append(("delimiters", f"not applicable: {section.self_sinking_reason}"))
    else:
        classes = {found.name: found for found in section.self_sinking[0].classes}
        parts = [f"{name}s {_number(classes[name].self_attention.value)}" for name in ("delimiter", "other")]
        rows.append(("delimiters", f"self-attention in block {section.self_sinking[0].block}: {', '.join(parts)}"))
    return rows


def _normalisation(section: sections.Normalisation) -> Rows:
    implicit = section.implicit
    block = next(block for block in section.blocks if block.block == implicit.block)
    rows: Rows = [
        ("", f"explained by the mean over other prompts: spike tokens {_share(implicit.explained_spike)}, "
             f"others {_share(implicit.explained_other)}"),
    ]  # fmt: skip
    line = f"energy in spike channels {_share(block.spike.energy_share)} against {_share(block.other.energy_share)}; "
    line += f"cosine across prompts {_number(block.spike.cosine_across)} against {_number(block.other.cosine_across)}"
    rows.append((f"block {block.block}", line))
    return rows


def _geometry(section: sections.Geometry) -> Rows:
    ranks = [np.median([getattr(key, name) for key in section.keys]) for name in ("rank_sink", "rank_other")]
    rows: Rows = [("", f"median effective rank of keys: sink {ranks[0]:.1f}, as many others {ranks[1]:.1f}")]
    for label, is_sink in (("sink heads", True), ("other heads", False)):
        gaps = [gap for gap in section.gaps if gap.is_sink == is_sink]
        if gaps:
            means = [float(np.mean([getattr(gap, name) for gap in gaps])) for name in ("gap", "content", "distance")]
            rows.append((label, f"logit gap {means[0]:.2f} = content {means[1]:.2f} + distance {means[2]:.2f}"))
    return rows


def _heads(section: sections.Heads) -> Rows:
    rows: Rows = [
        (
            "",
            f"{len(section.heads)} heads, {section.sink_tokens.tokens} sink tokens; rank correlation of sink mass with",
        )
    ]
    for found in section.correlations:
        line = f"{_interval(found.over_heads)}; within layers {_interval(found.within_layers)}"
        rows.append((_NAMES.get(found.other, found.other), line))
    if section.loss_reason:
        rows.append(("loss", f"not applicable: {section.loss_reason}"))
    elif section.loss_sink_nats is not None and section.loss_control_nats is not None:
        line = f"mean |direct effect| of a head's sink part {_number(section.loss_sink_nats.value)} nats, "
        rows.append(("loss", line + f"of a random one {_number(section.loss_control_nats.value)}"))
    return rows


def _properties(section: sections.Properties) -> Rows:
    rows: Rows = []
    for found in section.properties:
        verdict = {True: "holds", False: "does not hold", None: f"not applicable: {found.reason}"}[found.holds]
        rows.append((f"({found.name})", f"{verdict}: {found.description} {_number(found.value)}"))
    if section.overlap is None:
        rows.append(("sinks", f"not applicable: {section.overlap_reason}"))
    else:
        for label, both in (("co-occurs", section.overlap), ("without 1st", section.overlap_later)):
            if both is not None:
                line = f"{both.both} of {both.spikes} spike and {both.sinks} sink tokens; Jaccard "
                rows.append((label, line + f"{_number(both.jaccard)}, by chance {_number(both.chance_jaccard)}"))
    return rows


_NAMES = {
    "distance": "distance",
    "distance_by_mass": "by mass",
    "write_norm": "write norm",
    "entropy_nats": "entropy",
}
_ROWS: dict[str, Callable[[Any], Rows]] = {
    "amplifier": _amplifier,
    "trigger": _trigger,
    "normalisation": _normalisation,
    "geometry": _geometry,
    "heads": _heads,
    "properties": _properties,
}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _interval(found: sections.Interval) -> str:
    return f"{_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"
