"""The FFN as a directional quadratic amplifier: norms of U_k by block, spectra of S_k. Figures 3, 4 and 8."""

import altair as alt
import numpy as np

from spikesink.positions import placed
from spikesink.records import Anatomy
from spikesink.records.sections import amplifier as sections
from spikesink.report.document import Merit, Part, Table
from spikesink.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    Figure,
    Rows,
    block_axis,
    colours,
    drawing,
    inline,
    layered,
    line_legend,
    log_scale,
    magnitude_axis,
    table,
)
from spikesink.report.format import NONE, blocks, counted, interval, listed, number, percent

NAMED = 8
"""Outliers that get their channel beside them."""


def amplifier_part(record: Anatomy, section: sections.Amplifier) -> Part:
    """What the amplifier's section of the record says."""
    return Part(
        "amplifier",
        "The amplifier",
        "A gated FFN whose gate is near the identity is a quadratic form in each output channel, "
        "h̃ᵀU_k h̃. A channel with an outlying ‖U_k‖ and one dominant eigenvalue turns one direction into a spike.",
        merits=_merits(section),
        figures=amplifier_figures(record, section),
        tables=[_steps(section)] if section.steps else [],
        note=f"No step block is taken apart: {section.steps_reason}." if section.steps_reason else "",
    )


def _r2(prediction: sections.Prediction) -> str:
    return number(prediction.r2 if prediction.r2 is not None and prediction.r2 >= 0 else None)


def amplifier_figures(record: Anatomy, section: sections.Amplifier) -> list[Figure]:
    """The charts of the section."""
    figures = [_norms(record, section)] if len(record.arrays.get("amplifier.norms", ())) else []
    spectra = _spectra(record, section)
    return [*figures, spectra] if spectra else figures


def _merits(section: sections.Amplifier) -> list[Merit]:
    strongest = [f"{item.channel} in block {placed(item.block)}, {number(item.frobenius)}" for item in section.outliers]
    merits = [Merit("outlying channels", float(section.outlier_count), note="; ".join(strongest[:3]))]
    for step in section.steps:
        if step.channel == section.spike_channel:
            first = step.rank_one_first
            note = f"the next is {number(step.next_eigenvalue)}; rank one predicts {number(first.ratio)} × the true "
            note += f"output at position 0 (n = {first.n})"
            merits.append(Merit(f"λ* in block {placed(step.block)}", step.eigenvalue, note=note, digits=4))
    return [*merits, *(_shared(direction) for direction in section.directions if direction.mean_cosine is not None)]


def _shared(direction: sections.SharedDirection) -> Merit:
    """Whether the channels that spike are amplified in one direction."""
    control = number(direction.control_cosine) if direction.control is None else interval(direction.control)
    drawn = "random channels" if direction.control is None else f"{direction.control.n} random channels"
    note = f"mean |cos| between the s* of {counted(len(direction.channels), 'channel')}; {drawn} {control}"
    return Merit(f"shared direction in block {placed(direction.block)}", direction.mean_cosine, note=note)


def _steps(section: sections.Amplifier) -> Table:
    """The rank-one form of step FFNs against their true output."""
    rows = [
        [
            placed(step.block), f"{step.channel}", number(step.eigenvalue), number(step.next_eigenvalue),
            percent(step.share_of_spectrum), number(step.alignment_spike), number(step.alignment_other),
            number(step.rank_one_spike.ratio), _r2(step.rank_one_spike), number(step.quadratic_spike.ratio),
        ]
        for step in section.steps
    ]  # fmt: skip
    columns = ("block", "channel", "λ*", "next", "share of S²", "|cos|, spikes", "others", "rank 1 / true", "R²",
               "quadratic / true")  # fmt: skip
    n = section.steps[0].rank_one_spike.n
    return Table(
        "One direction predicts what the step FFNs write", columns, rows, brief=(),
        note=f"λ*‖h̃‖²cos²(s*, h̃) against the true output, at {n} spike tokens; a ratio far from 1 says that the form "
        f"does not hold in that block. R² is {NONE} where it is below 0: where the truth hardly varies, a "
        f"share of its variance says nothing. {section.erratum}",
    )  # fmt: skip


def _norms(record: Anatomy, section: sections.Amplifier) -> Figure:
    norms, row_blocks = record.arrays["amplifier.norms"], record.arrays["amplifier.blocks"]
    rows: Rows = []
    for block in np.unique(row_blocks):
        values = norms[row_blocks == block]
        low, median, high = (float(np.quantile(values, share)) for share in (0.01, 0.5, 0.99))
        strongest = int(values.max(0).argmax())
        rows.append(
            {"block": int(block), "low": low, "median": median, "high": high, "largest": float(values.max()),
             "channel": strongest}
        )  # fmt: skip
    named = [
        {"block": item.block, "largest": item.frobenius, "label": str(item.channel), "times": item.over_median}
        for item in section.outliers[:NAMED]
    ]
    values = [row[name] for row in rows for name in ("low", "largest")]
    y = alt.Y("low:Q", title="‖U_k‖ of a channel", scale=log_scale(values), axis=magnitude_axis(values))
    base = drawing().encode(block_axis("FFN block"))
    tips = [
        alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("block", "low", "median", "high", "largest", "channel")
    ]
    layers = [
        base.mark_area(opacity=0.25, color=BLUE).encode(y, alt.Y2("high:Q")),
        base.mark_line(color=BLUE, strokeWidth=2).encode(alt.Y("median:Q")),
        base.mark_point(filled=True, color=GREY, size=30, opacity=1).encode(alt.Y("largest:Q"), tooltip=tips),
    ]
    if named:
        points = alt.Chart(inline(named)).encode(alt.X("block:Q"), alt.Y("largest:Q"))
        layers.append(points.mark_point(filled=True, color=ORANGE, size=60, opacity=1, shape="diamond"))
        layers.append(points.mark_text(dx=7, align="left").encode(alt.Text("label:N")))
    text = listed([f"channel {item.channel} in block {placed(item.block)}" for item in section.outliers], NAMED)
    return Figure(
        name="amplifier_norms",
        wide=True,
        title="Channels that an FFN amplifies",
        chart=layered(*layers),
        rows=table(rows),
        caption="Line: median ‖U_k‖ over channels; band: 1st to 99th percentile; grey: the largest channel; orange: "
        f"outliers, at least {section.outlier_over_median_min:g} × the median of their block "
        f"({section.outlier_count} in all). From the weights alone, norm folded in; "
        f"{norms.shape[1]} channels a block.",
        alternative=f"Norms of U_k by FFN block; outliers: {text or 'none'}.",
    )


def _spectra(record: Anatomy, section: sections.Amplifier) -> Figure | None:
    """Eigenvalues of S_k of the followed channels, in step blocks and in the other outlier blocks."""
    steps = set(record.summary.step_up_blocks + record.summary.step_down_blocks) | set(section.outlier_blocks)
    spike = section.spike_channel
    rows: Rows = []
    for block in section.blocks:
        for channel in block.channels:
            if channel.channel != spike or not channel.eigenvalues:
                continue
            kind = "step or outlier block" if block.block in steps else "other block"
            rows += [
                {"block": block.block, "channel": channel.channel, "kind": kind, "line": f"block {block.block}",
                 "rank": rank + 1, "eigenvalue": value, "magnitude": abs(value)}
                for rank, value in enumerate(channel.eigenvalues)
            ]  # fmt: skip
    if not rows:
        return None
    kinds = ("step or outlier block", "other block")
    sizes = [row["magnitude"] for row in rows]
    chart = drawing().mark_line(point=alt.OverlayMarkDef(size=22), strokeWidth=1.5).encode(
        alt.X("rank:Q", title="rank of the eigenvalue by magnitude", axis=alt.Axis(tickMinStep=1, grid=False)),
        alt.Y("magnitude:Q", title="|eigenvalue| of S_k", scale=log_scale(sizes), axis=magnitude_axis(sizes)),
        alt.Color("kind:N", title=None, scale=colours(kinds, [ORANGE, GREY]), legend=line_legend()),
        detail="line:N",
        opacity=alt.condition("datum.kind === 'other block'", alt.value(0.35), alt.value(1)),
        tooltip=["block:Q", "channel:Q", "rank:Q", alt.Tooltip("eigenvalue:Q", format=".4~g")],
    )  # fmt: skip
    shown = sorted({row["block"] for row in rows if row["kind"] == kinds[0]})
    first = [step for step in section.steps if step.channel == spike]
    text = listed(
        [f"block {placed(s.block)}: λ* {number(s.eigenvalue)}, next {number(s.next_eigenvalue)}" for s in first]
    )
    ended = f" {text[0].upper()}{text[1:]}." if text else ""
    return Figure(
        name="amplifier_spectra",
        title=f"Does one eigenvalue do it? The spectrum of channel {spike}",
        chart=layered(chart),
        rows=table(rows),
        caption="The largest eigenvalues of S_k = (U_k + U_kᵀ)/2 of the spike channel, one line a block; "
        f"orange: {blocks(shown)}.{ended} From the weights alone.",
        alternative=f"Eigenvalue spectra of channel {spike}.{ended or ' No step block.'}",
    )
