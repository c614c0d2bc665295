"""What each intervention costs and leaves, with its controls of the same size."""

from typing import Any

import altair as alt

from spikesink.records.interventions import InterventionRow, Interventions
from spikesink.report.charts.base import BLUE, GREY, ORANGE, Figure, Rows, colours, drawing, inline, layered, table
from spikesink.report.conditions import conditions
from spikesink.report.words import counted

KINDS = ("intervention", "control of the same size")
CONTROL_BELOW = "indexof(datum.label, ' / ') < 0 ? datum.label : '– ' + split(datum.label, ' / ')[1]"
"""A control's label without the intervention's, which stands above it."""


def intervention_figures(record: Interventions) -> list[Figure]:
    rows = _rows(record)
    return [_cost(record, rows), _plane(record, rows)] if rows else []


def _rows(record: Interventions) -> Rows:
    return [_row(row) for row in record.interventions if row.applicable and row.name != "baseline"]


def _row(row: InterventionRow) -> dict[str, Any]:
    assert row.loss_difference_nats and row.sink_ratio_kept and row.plateau_kept and row.perplexity
    cost, kept, plateau = row.loss_difference_nats, row.sink_ratio_kept, row.plateau_kept
    return {
        "name": row.name.replace("_", " ").replace("/", " / "), "kind": KINDS[row.control_of is not None],
        "cost": cost.value, "cost_low": cost.low, "cost_high": cost.high, "perplexity": row.perplexity.value,
        "sinks": kept.value, "sinks_low": kept.low, "sinks_high": kept.high,
        "plateau": plateau.value, "plateau_low": plateau.low, "plateau_high": plateau.high,
    }  # fmt: skip


def _cost(record: Interventions, rows: Rows) -> Figure:
    order = [row["name"] for row in rows]
    y = alt.Y("name:N", title=None, sort=order, axis=alt.Axis(grid=True, labelExpr=CONTROL_BELOW))
    x = alt.X("cost:Q", title="cost in nats (symmetric log)", scale=alt.Scale(type="symlog", constant=0.01, nice=False),
              axis=alt.Axis(values=[-1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10], format="~g"))  # fmt: skip
    colour = alt.Color("kind:N", title=None, scale=colours(KINDS, [ORANGE, GREY]))
    tips = ["name:N", "kind:N", *[alt.Tooltip(f"{n}:Q", format="+.4~g") for n in ("cost", "cost_low", "cost_high")],
            alt.Tooltip("perplexity:Q", format=",.5~g")]  # fmt: skip
    base = drawing().encode(y, colour)
    bars = base.mark_rule(strokeWidth=3).encode(alt.X("cost_low:Q"), alt.X2("cost_high:Q"))
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        x, shape=alt.Shape("kind:N", title=None, scale=alt.Scale(domain=list(KINDS), range=["circle", "diamond"])),
        tooltip=tips,
    )  # fmt: skip
    zero = alt.Chart(inline([{"cost": 0}])).mark_rule(strokeDash=[3, 3]).encode(alt.X("cost:Q"))
    n = record.provenance.settings["evaluated_sequences"]
    worst = max(rows, key=lambda row: row["cost"])
    return Figure(
        name="interventions_cost",
        wide=True,
        title="What each intervention costs",
        chart=layered(zero, bars, points, height=max(120, 22 * len(rows))),
        rows=table(rows),
        caption=f"Mean loss less the baseline's on the same tokens, 95 % bootstrap interval over "
        f"{counted(n, 'sequence')}; grey: random controls of the same size, mean over "
        f"{record.provenance.settings['draws']} draws. {conditions(record)}",
        alternative=f"Costs of {len(rows)} interventions and controls; the dearest is {worst['name']} with "
        f"{worst['cost']:+.2f} nats. The table below has every number.",
    )


def _labels(rows: Rows, near: float = 0.04) -> Rows:
    """Names of interventions that moved something, those of points that lie on one another together."""
    labels: Rows = []
    for row in rows:
        if row["kind"] != KINDS[0] or min(row["sinks"], row["plateau"]) >= 0.9:
            continue
        same = next((one for one in labels if all(abs(one[x] - row[x]) < near for x in ("sinks", "plateau"))), None)
        if same is None:
            labels.append({"sinks": row["sinks"], "plateau": row["plateau"], "label": row["name"]})
        else:
            same["label"] += f", {row['name']}"
    return labels


def _plane(record: Interventions, rows: Rows) -> Figure:
    tips = ["name:N", "kind:N", *[alt.Tooltip(f"{n}:Q", format=".1%") for n in ("plateau", "sinks")],
            alt.Tooltip("cost:Q", format="+.4~g")]  # fmt: skip
    base = drawing().encode(
        alt.X("plateau:Q", title="spike plateau left", axis=alt.Axis(format="%")),
        alt.Y("sinks:Q", title="sink ratio left", axis=alt.Axis(format="%")),
        alt.Color("kind:N", title=None, scale=colours(KINDS, [ORANGE, GREY])),
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        alt.Shape("kind:N", title=None, scale=alt.Scale(domain=list(KINDS), range=["circle", "diamond"])), tooltip=tips
    )
    names = alt.Chart(inline(_labels(rows))).mark_text(align="left", dx=8, dy=-6)
    one = alt.Chart(inline([{"one": 1.0}]))
    rules: dict[str, Any] = {"strokeDash": [3, 3], "color": BLUE, "opacity": 0.6}
    return Figure(
        name="interventions_plane",
        title="Can one go without the other?",
        chart=layered(
            one.mark_rule(**rules).encode(alt.X("one:Q")),
            one.mark_rule(**rules).encode(alt.Y("one:Q")),
            points,
            names.encode(alt.X("plateau:Q"), alt.Y("sinks:Q"), alt.Text("label:N")),
        ),
        rows=table(rows),
        caption="Left: spikes gone; below: sinks gone; the corner at 100 %: both as they were. "
        f"Verdict: {record.dissociation.verdict}. {conditions(record)}",
        alternative="Scatter of the sink ratio that is left against the spike plateau that is left. "
        + record.dissociation.sentence,
    )
