"""The life cycle of a spike: what is in the residual stream after each block, and what each block writes. Figure 1."""

import math
from typing import Any

import altair as alt

from spikesink.records import Anatomy, Peak
from spikesink.report.document import Part, Table
from spikesink.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    HEIGHT,
    ORANGE,
    Figure,
    Rows,
    Sketch,
    block_axis,
    drawing,
    inline,
    layered,
    lines,
    log_scale,
    magnitude_axis,
    step_marks,
    table,
)
from spikesink.report.format import blocks, counted, number, percent, printable, shown

RANKS = ("largest", "second", "third", "median")


BARS = " ▁▂▃▄▅▆▇█"


def lifecycle_part(record: Anatomy) -> Part:
    """What the life cycle of the record says."""
    return Part(
        "lifecycle",
        "Life cycle of the largest activations",
        "Each block adds its write to the residual stream: few blocks make a spike, the ones between carry it along, "
        "few take it away.",
        figures=lifecycle_figures(record),
        label="Life cycle",
    )


def _sketch(record: Anatomy) -> Sketch:
    """Largest magnitude after each block on a logarithmic scale, the step blocks marked below."""
    summary = record.summary
    peaks = [(cycle.block, cycle.resid_top3[0].value) for cycle in record.lifecycle.blocks if cycle.resid_top3]
    levels = [math.log10(max(value, 1e-3)) for _, value in peaks]
    low, span = min(levels), max(max(levels) - min(levels), 1e-9)
    curve = "".join(BARS[1 + round((level - low) / span * (len(BARS) - 2))] for level in levels)
    ups, downs = summary.step_up_blocks, summary.step_down_blocks
    marks = [("▲", "green") if b in ups else ("▼", "red") if b in downs else (" ", "") for b, _ in peaks]
    values = [value for _, value in peaks]
    course = " to ".join(number(value, 4) for value in (values[0], max(values), values[-1]))
    where = f"largest |h| after blocks {peaks[0][0]} to {peaks[-1][0]}: {course} (log scale)"
    return [[(curve, "cyan")], marks, [(where, "dim")]]


def lifecycle_figures(record: Anatomy) -> list[Figure]:
    """Top-3 magnitudes after and before the residual sum, and each block's share of the plateau."""
    figures = [_residual(record), _write(record)]
    return [*figures, _shares(record)] if record.lifecycle.step_rule.applies else figures


def _residual(record: Anatomy) -> Figure:
    rows: Rows = []
    for cycle in record.lifecycle.blocks:
        rows += _peaks(cycle.block, cycle.kind, cycle.resid_top3)
        if cycle.resid_median is not None:
            rows.append({"block": cycle.block, "kind": cycle.kind, "which": "median", "magnitude": cycle.resid_median})
    peak = record.summary
    return Figure(
        name="lifecycle_residual",
        wide=True,
        key=True,
        sketch=_sketch(record),
        title="After each block: the largest magnitudes in the residual stream",
        chart=_lines(rows, record, "magnitude in the residual stream"),
        rows=table(rows),
        caption="The three channels with the largest magnitude over all tokens after each block, and the median "
        f"magnitude; logarithmic. {_marked(record)}",
        alternative=f"Line chart over {len(record.lifecycle.blocks)} blocks: the largest magnitude is "
        f"{number(peak.spike)} in channel {peak.spike_channel} after block {record.placed(peak.spike_block)}; "
        f"step-up: {blocks(peak.step_up_blocks, record.placed)}; "
        f"step-down: {blocks(peak.step_down_blocks, record.placed)}.",
    )


def _write(record: Anatomy) -> Figure:
    rows: Rows = []
    for cycle in record.lifecycle.blocks:
        rows += _peaks(cycle.block, cycle.kind, cycle.out_top3)
    top = max((row for row in rows), key=lambda row: row["magnitude"])
    return Figure(
        name="lifecycle_write",
        wide=True,
        title="Before it: the largest magnitudes that each block writes",
        chart=_lines(rows, record, "magnitude of the block's write"),
        rows=table(rows),
        caption="The same of what each block adds to the residual stream. A spike that few blocks make and others take "
        f"away shows as few high points here and a plateau above. {_marked(record)}",
        alternative=f"Line chart over {len(record.lifecycle.blocks)} blocks: the largest write is "
        f"{number(top['magnitude'])} in channel {top['channel']}, by block {record.placed(top['block'])}.",
    )


def _peaks(block: int, kind: str, peaks: list[Peak] | None) -> Rows:
    return [
        {
            "block": block, "kind": kind, "which": RANKS[rank], "channel": peak.channel, "magnitude": peak.value,
            "sign": peak.sign, "sequence": peak.sequence, "position": peak.position,
        }
        for rank, peak in enumerate(peaks or [])
    ]  # fmt: skip


def _lines(rows: Rows, record: Anatomy, title: str) -> alt.LayerChart:
    names = [name for name in RANKS if any(row["which"] == name for row in rows)]
    values = [row["magnitude"] for row in rows]
    y = alt.Y("magnitude:Q", title=title, scale=log_scale(values), axis=magnitude_axis(values))
    fields = ("block", "kind", "which", "channel", "magnitude", "sign", "sequence", "position")
    marks = step_marks(record.summary.step_up_blocks, record.summary.step_down_blocks)
    return lines(
        "which", names, block_axis(), y, [f"{name}:N" for name in fields], hues=[ORANGE, BLUE, GREEN, GREY], size=28,
        marks=marks,
    )  # fmt: skip


def _shares(record: Anatomy) -> Figure:
    rule = record.lifecycle.step_rule
    rows = [
        {"block": cycle.block, "kind": cycle.kind, "share": cycle.share_of_plateau}
        for cycle in record.lifecycle.blocks
        if cycle.share_of_plateau is not None
    ]
    bars = drawing().mark_bar(width=4).encode(
        block_axis(),
        alt.Y("share:Q", title="signed share of the plateau", axis=alt.Axis(format="+%")),
        color=alt.condition(f"abs(datum.share) >= {rule.share_min}", alt.value(ORANGE), alt.value(BLUE)),
        tooltip=["block:Q", "kind:N", alt.Tooltip("share:Q", format="+.3%")],
    )  # fmt: skip
    limits = alt.Chart(inline([{"limit": rule.share_min}, {"limit": -rule.share_min}]))
    steps = record.summary.step_up_blocks + record.summary.step_down_blocks
    return Figure(
        name="lifecycle_shares",
        wide=True,
        title="The rule that names step blocks",
        chart=layered(bars, limits.mark_rule(strokeDash=[4, 3]).encode(alt.Y("limit:Q")), height=HEIGHT - 80),
        rows=table(rows),
        caption=f"Signed contribution of each block on the spike channels at {rule.tokens} spike tokens, as a share of "
        f"the plateau ({number(rule.plateau)}). At least {percent(rule.share_min)} up to block "
        f"{record.placed(record.spikes.verdict_block)} is step-up, at most −{percent(rule.share_min)} after it "
        "step-down.",
        alternative="Bar chart of each block's share of the plateau; the step blocks are "
        + ", ".join(f"{row['block']} ({row['share']:+.0%})" for row in rows if row["block"] in steps)
        + ".",
    )


def _marked(record: Anatomy) -> str:
    summary = record.summary
    if summary.step_up_blocks or summary.step_down_blocks:
        up, down = (blocks(steps, record.placed) for steps in (summary.step_up_blocks, summary.step_down_blocks))
        return f"▲ step-up: {up}. ▼ step-down: {down}."
    return f"No step block is marked ({record.lifecycle.step_rule.reason or 'none reaches the rule'})."


LISTED = 12
"""Massive channels in the table."""


def spikes_part(record: Anatomy) -> Part:
    """Every listed spike token with the text around it."""
    return Part(
        "tokens",
        "The tokens that spike",
        "Darker means larger; the number behind a token is the largest magnitude of its state.",
        template="tokens",
        content=_spike_lines(record),
        tables=_massive(record),
        note="" if record.summary.has_spikes else "No token reaches the rule for spikes.",
    )


def _massive(record: Anatomy) -> list[Table]:
    """Channels that meet Sun et al.'s criterion, most elements first."""
    rule = record.spikes
    rows = [
        [f"{item.channel}", f"{item.count:,}", f"{item.tokens:,}", f"{item.first_block} to {item.last_block}",
         number(item.largest)]
        for item in rule.massive_channels[:LISTED]
    ]  # fmt: skip
    if not rows:
        return []
    note = f"Elements above {rule.sun2024_absolute:g} and {rule.sun2024_ratio:g} × the median of their residual, in "
    note += f"{counted(len(rule.massive_channels), 'channel')}."
    columns = ("channel", "elements", "tokens", "blocks", "largest")
    return [Table("Massive activations by Sun et al. 2024", columns, rows, note=note, brief=())]


def _spike_lines(record: Anatomy) -> list[dict[str, Any]]:
    """Spike tokens, the largest first, and how dark they are from 1 to 5."""
    top = max((token.value for token in record.summary.spike_tokens), default=1.0)
    return [
        {
            "place": f"sequence {token.sequence}, position {token.position}",
            "before": printable(token.before or ""),
            "text": shown(token.text) or "(empty)",
            "after": printable(token.after or ""),
            "value": number(token.value),
            "shade": max(1, min(5, round(5 * token.value / top))),
        }
        for token in record.summary.spike_tokens
    ]
