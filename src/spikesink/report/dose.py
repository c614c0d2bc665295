"""How far spikes or sinks can be weakened before the others fall: one sweep, one table, one chart."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from spikesink.records.intervals import Estimate
from spikesink.records.interventions import Dose, InterventionRow, Interventions
from spikesink.report.document import Part, Table
from spikesink.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    Figure,
    Rows,
    colours,
    dashes,
    drawing,
    layered,
    log_scale,
    table,
)
from spikesink.report.format import NONE, counted, interval, listed, number, percent
from spikesink.report.interventions import cost_text

LINES = ("sinks left", "spike left (norm ratio)", "spike left (largest magnitude)")
CONTROL = "sinks left, controls"


def dose_part(record: Interventions) -> Part:
    """Every sweep of the record; what it says is among the answers."""
    shown = [dose for dose in record.dose if dose.applicable]
    return Part(
        "dose",
        "How much is enough",
        "One is weakened step by step: from which strength on does the other fall, and at what cost?",
        figures=[dose_figure(dose) for dose in shown],
        tables=[_table(record, dose) for dose in shown],
        label="Dose",
    )


def _table(record: Interventions, dose: Dose) -> Table:
    columns = (
        dose.strength, "perplexity", "cost in nats", "sink ratio", "behind the edit", "norm ratio", "spike",
        "max / median", "spike tokens",
    )  # fmt: skip
    return Table(
        dose.name, columns, [_cells(row) for row in dose.levels if row.applicable],
        ["control" if row.control_of else "" for row in dose.levels if row.applicable],
        note=f"95 % bootstrap intervals over {counted(record.provenance.settings['evaluated_sequences'], 'sequence')}. "
        "Norm ratio: largest norm of a token over the median token's, where spikes are complete. Indented: one draw of "
        "a random control at the same strength.",
        brief=(dose.strength, "perplexity", "cost in nats", "sink ratio", "norm ratio"),
    )  # fmt: skip


def level_text(row: InterventionRow, share: bool) -> str:
    """40, or 50 %."""
    return percent(row.strength) if share else number(row.strength)


def _cells(row: InterventionRow) -> list[str]:
    assert row.loss_difference_nats and row.sink_ratio
    level = row.name.split("/")[1].replace("_", " ") if row.control_of else number(row.strength)
    downstream = row.downstream_sink_ratio
    return [
        level, interval(row.perplexity), cost_text(row.loss_difference_nats), percent(row.sink_ratio.value),
        percent(downstream.value) if downstream else NONE, interval(row.norm_ratio), number(row.spike),
        number(row.max_over_median), number(row.spike_tokens),
    ]  # fmt: skip


def dose_figure(dose: Dose) -> Figure:
    """Spike and sinks that are left over strength, with the cost above."""
    share = dose.strength.startswith("share")
    rows: Rows = []
    levels = [row for row in dose.levels if row.applicable]
    base = next((row.norm_ratio for row in levels if row.control_of is None and row.norm_ratio), None)
    for row in levels:
        shares = dict(zip(LINES, (_sinks(row), _over(row.norm_ratio, base), row.plateau_kept), strict=True))
        if row.control_of is not None:
            shares = {CONTROL: _sinks(row)}
        assert row.loss_difference_nats
        facts = {"name": row.name, "level": level_text(row, share), "cost": row.loss_difference_nats.value}
        rows += [
            {**facts, "line": line, "value": left.value, "low": left.low, "high": left.high}
            for line, left in shares.items()
            if left is not None
        ]
    order = list(dict.fromkeys(row["level"] for row in rows))
    lines = [line for line in (*LINES, CONTROL) if any(row["line"] == line for row in rows)]
    x = alt.X("level:O", title=dose.strength, sort=order, axis=alt.Axis(labelAngle=0))
    y = alt.Y("value:Q", title="of the model as it is", axis=alt.Axis(format="%"))
    drawn = drawing().encode(
        x,
        alt.Color(
            "line:N",
            title=None,
            sort=lines,
            scale=colours(lines, [BLUE, ORANGE, "#a6761d", GREY]),
            legend=alt.Legend(offset=26),
        ),
    )
    of_sinks = "datum.line === 'sinks left'"
    tips = ["name:N", "level:N", "line:N", *[alt.Tooltip(f"{n}:Q", format=".1%") for n in ("value", "low", "high")],
            alt.Tooltip("cost:Q", format="+.4~g", title="cost, nats")]  # fmt: skip
    chart = layered(
        drawn.mark_line(strokeWidth=2).encode(
            y, alt.StrokeDash("line:N", title=None, sort=lines, scale=dashes(lines))
        ).transform_filter(f"datum.line !== '{CONTROL}'"),
        drawn.mark_rule(strokeWidth=2).encode(alt.Y("low:Q"), alt.Y2("high:Q")),
        drawn.mark_point(filled=True, size=50, opacity=1).encode(y, tooltip=tips),
        drawing().mark_text(dy=-8).encode(x, alt.Text("cost:Q", format="+.2~f"), y=alt.value(0))
        .transform_filter(of_sinks),
    )  # fmt: skip
    ends = listed([f"{row['line']} {percent(row['value'])}" for row in rows if row["level"] == order[-1]])
    return Figure(
        name=f"dose_{dose.name}",
        title="A weaker spike: do sinks stay?" if dose.target == "spikes" else "Weaker sinks: do spikes stay?",
        key=True,
        chart=chart,
        rows=table(rows),
        caption="What is left at each strength, with 95 % bootstrap intervals over sequences; above: the cost in nats. "
        "Sinks: of the blocks behind spikes that are edited." + _places(dose),
        alternative=f"Lines over strength ({dose.strength}); at the last level: {ends}.",
    )


def dominance_figure(sweeps: Sequence[tuple[str, Dose]]) -> Figure:
    """Sinks that are left over how far the spike tokens' norm still stands out, one line a sweep of the spike."""
    rows: Rows = [
        {"sweep": name, "level": level_text(row, False), "ratio": row.norm_ratio.value, "value": left.value,
         "low": left.low, "high": left.high}
        for name, dose in sweeps
        for row in dose.levels
        if row.control_of is None and row.norm_ratio and (left := _sinks(row))
    ]  # fmt: skip
    names = [name for name, _ in sweeps]
    y = alt.Y("value:Q", title="sinks left", axis=alt.Axis(format="%"))
    drawn = drawing().encode(
        alt.X("ratio:Q", title="norm ratio that is left", scale=log_scale(row["ratio"] for row in rows)),
        alt.Color("sweep:N", title=None, sort=names, scale=colours(names)),
        alt.Order("ratio:Q"),
    )
    tips = ["sweep:N", alt.Tooltip("level:N", title="divided by"), alt.Tooltip("ratio:Q", format=".3~g"),
            *[alt.Tooltip(f"{n}:Q", format=".1%") for n in ("value", "low", "high")]]  # fmt: skip
    ends = listed([f"{name} {_ends(dose)}" for name, dose in sweeps], len(sweeps))
    return Figure(
        name="dose_dominance",
        title="How far must a token's norm stand out for sinks to stay?",
        key=True,
        chart=layered(
            drawn.mark_line(strokeWidth=2).encode(
                y, alt.StrokeDash("sweep:N", title=None, sort=names, scale=dashes(names))
            ),
            drawn.mark_rule(strokeWidth=2).encode(alt.Y("low:Q"), alt.Y2("high:Q")),
            drawn.mark_point(filled=True, size=50, opacity=1).encode(y, tooltip=tips),
        ),
        rows=table(rows),
        caption="Norm ratio: largest norm of a token over the median token's, after the spike was divided. Sinks: of "
        "the blocks behind the edit, with 95 % bootstrap intervals over sequences.",
        alternative=f"Lines over the norm ratio; sinks left at the last level: {ends}.",
    )


def _ends(dose: Dose) -> str:
    """Sinks and norm ratio that are left at the strongest level."""
    last = [row for row in dose.levels if row.control_of is None and row.applicable][-1]
    left, ratio = _sinks(last), last.norm_ratio
    return f"{percent(left.value) if left else NONE} at {number(ratio.value if ratio else None)}"


def _places(dose: Dose) -> str:
    limits = (("stays to", dose.stays_to), ("fallen from", dose.falls_from))
    said = listed([f"{what} {number(level)}" for what, level in limits if level is not None])
    return f" The other quantity: {said}." if said else ""


def _sinks(row: InterventionRow) -> Estimate | None:
    return row.downstream_sink_ratio_kept if row.target == "spikes" else row.sink_ratio_kept


def _over(kept: Estimate | None, base: Estimate | None) -> Any:
    if kept is None or base is None:
        return None
    return Estimate(**{name: getattr(kept, name) / base.value for name in ("value", "low", "high")})
