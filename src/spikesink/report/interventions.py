"""What each intervention costs and leaves, with its controls of the same size."""

from typing import Any

import altair as alt

from spikesink.records.intervals import Estimate
from spikesink.records.interventions import Answer, InterventionRow, Interventions
from spikesink.report.document import Part, Table
from spikesink.report.drawing import BLUE, GREY, ORANGE, Figure, Rows, colours, drawing, inline, layered, table
from spikesink.report.format import NONE, counted, listed, number, percent, signed

KINDS = ("intervention", "control of the same size")
NEAR = 0.04
"""Points of the plane that are no farther apart have one label."""
NATS = ("free_max", "costly_min")
"""Thresholds that are losses; the others are shares."""
CONTROL_BELOW = "indexof(datum.label, ' / ') < 0 ? datum.label : '– ' + split(datum.label, ' / ')[1]"
"""A control's label without the intervention's, which stands above it."""
ANOTHER_PROCESSOR = (
    "Intervals are over sequences. On another processor sums differ in their last bits, so other values round up, and "
    "a cost moves by some hundredths of a nat."
)
"""Said wherever something is quantised."""


def interventions_part(record: Interventions) -> Part:
    """What each intervention, control and the verdict say."""
    return Part(
        "interventions",
        "Remove one, keep the rest",
        "What the model loses when spikes or sinks go, with a random control of the same size for each.",
        figures=intervention_figures(record),
        tables=[_answers(record), _table(record)],
        note=_refused(record),
        label="Interventions",
    )


def _table(record: Interventions) -> Table:
    """Every intervention that applies with its controls below it."""
    columns = ("intervention", "perplexity", "cost in nats", "sink ratio", "sinks left", "plateau left", "spike tokens")
    shown = [row for row in record.interventions if row.applicable]
    settings = record.provenance.settings
    return Table(
        "Remove one, keep the rest", columns, [[_label(row), *_numbers(row)] for row in shown],
        ["control" if row.control_of else "strong" if row.name == "baseline" else "" for row in shown],
        note=f"Cost: mean loss less the baseline's on the same tokens, with its 95 % bootstrap interval over "
        f"{counted(settings['evaluated_sequences'], 'sequence')}. Indented: random controls of the same size, "
        f"{counted(settings['draws'], 'draw')}. Plateau: largest magnitude between the step blocks, of the baseline's. "
        "Spike tokens: how many spike, per sequence.",
        brief=("intervention", "perplexity", "cost in nats", "sink ratio", "plateau left", "spike tokens"),
    )  # fmt: skip


def _label(row: InterventionRow) -> str:
    return row.name.split("/")[1].replace("_", " ") if row.control_of else row.name


def _numbers(row: InterventionRow) -> list[str]:
    cost, perplexity = row.loss_difference_nats, row.perplexity
    shares = [value.value if value else None for value in (row.sink_ratio, row.sink_ratio_kept, row.plateau_kept)]
    return [
        number(perplexity.value if perplexity else None),
        NONE if row.name == "baseline" or cost is None else cost_text(cost),
        *map(percent, shares),
        number(row.spike_tokens),
    ]


def cost_text(cost: Estimate) -> str:
    """+11.3 [+11.29, +11.31], under a heading that says nats."""
    return f"{signed(cost.value)} [{signed(cost.low)}, {signed(cost.high)}]"


def _refused(record: Interventions) -> str:
    """What does not apply, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in record.interventions:
        if not row.applicable and row.control_of is None:
            reasons.setdefault(row.reason or "", []).append(row.name)
    return " ".join(f"Does not apply, since {reason}: {listed(names, 12)}." for reason, names in reasons.items())


def _answers(record: Interventions) -> Table:
    """The questions of the double dissociation, with what decided."""
    judgement = record.dissociation
    tried = any("left out" in text for text in judgement.rules.get("in_words", []))
    answers = (judgement.sinks_need_spikes, judgement.spikes_need_sinks, judgement.constant_suffices)
    return Table(
        f"Verdict: {judgement.verdict}",
        ("question", "answer", "because"),
        [
            [item.question, item.answer, _because(item) + (_sensitivity(item) if tried and place < 2 else "")]
            for place, item in enumerate(answers)
        ],
        words=3,
        aside=_rules(judgement.rules),
    )


def _because(answer: Answer) -> str:
    """The reason, and the rows of the table that decided."""
    rows = listed([name.replace("/", ", ").replace("_", " ") for name in answer.evidence], 4)
    return f"{answer.reason} (rows: {rows})" if rows else answer.reason


def _sensitivity(answer: Answer) -> str:
    """Whether the answer stays with other limits and without each row; flips of a decided one are in its reason."""
    if answer.answer in ("yes", "no"):
        return "; the same with each limit moved and each row left out"
    if answer.answer != "undecided" or answer.reason.startswith("the rules alone"):
        return ""
    flips = [f"{other} with {name.replace('_', ' ')}" for name, other in answer.sensitivity.items()]
    return f"; {listed(flips, 4)}" if flips else "; undecided too with each limit moved and each row left out"


def _rules(rules: dict[str, Any]) -> str:
    """The rules in words, with their numbers in the place of the numbers' names."""
    text = " ".join(rules.get("in_words", []))
    for name, value in rules.items():
        if isinstance(value, int | float):
            shown = f"{value:g}" if name in NATS else percent(value)
            text = text.replace(name, shown)
    return text


def intervention_figures(record: Interventions) -> list[Figure]:
    """The charts of the section."""
    rows = _rows(record)
    both = all({"sinks", "plateau"} <= row.keys() for row in rows)
    return [_cost(record, rows), *([_plane(record, rows)] if both else [])] if rows else []


def _rows(record: Interventions) -> Rows:
    return [_row(row) for row in record.interventions if row.applicable and row.name != "baseline"]


def _row(row: InterventionRow) -> dict[str, Any]:
    assert row.loss_difference_nats and row.perplexity
    cost = row.loss_difference_nats
    return {
        "name": row.name.replace("_", " ").replace("/", " / "), "kind": KINDS[row.control_of is not None],
        "cost": cost.value, "cost_low": cost.low, "cost_high": cost.high, "perplexity": row.perplexity.value,
        **_ends("sinks", row.sink_ratio_kept), **_ends("plateau", row.plateau_kept),
    }  # fmt: skip


def _ends(name: str, share: Estimate | None) -> dict[str, float]:
    """A share with its interval; nothing where the baseline has nothing to be a share of."""
    return {} if share is None else {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}


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
        key=True,
        title="What each intervention costs",
        chart=layered(zero, bars, points, height=max(120, 22 * len(rows))),
        rows=table(rows),
        caption=f"Mean loss less the baseline's on the same tokens, 95 % bootstrap interval over "
        f"{counted(n, 'sequence')}; grey: random controls of the same size, mean over "
        f"{counted(record.provenance.settings['draws'], 'draw')}.",
        alternative=f"Costs of {len(rows)} interventions and controls; the dearest is {worst['name']} with "
        f"{signed(worst['cost'])} nats. The table below has every number.",
    )


def _labels(rows: Rows) -> Rows:
    """Names of interventions that moved something, those of points that lie on one another together."""
    labels: Rows = []
    for row in rows:
        if row["kind"] != KINDS[0] or min(row["sinks"], row["plateau"]) >= 0.9:
            continue
        same = next((one for one in labels if all(abs(one[x] - row[x]) < NEAR for x in ("sinks", "plateau"))), None)
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
    labels = _labels(rows)
    # On the right, where there is no room beside a point, its name stands before it.
    sides = [
        alt.Chart(inline([row for row in labels if (row["plateau"] > 0.6) == right]))
        .mark_text(align="right" if right else "left", dx=-8 if right else 8, dy=-6)
        .encode(alt.X("plateau:Q"), alt.Y("sinks:Q"), alt.Text("label:N"))
        for right in (False, True)
        if any((row["plateau"] > 0.6) == right for row in labels)
    ]
    one = alt.Chart(inline([{"one": 1.0}]))
    rules: dict[str, Any] = {"strokeDash": [3, 3], "color": BLUE, "opacity": 0.6}
    return Figure(
        name="interventions_plane",
        title="Can one go without the other?",
        chart=layered(
            one.mark_rule(**rules).encode(alt.X("one:Q")),
            one.mark_rule(**rules).encode(alt.Y("one:Q")),
            points,
            *sides,
        ),
        rows=table(rows),
        caption="Left: spikes gone; below: sinks gone; the corner at 100 %: both as they were. "
        f"Verdict: {record.dissociation.verdict}.",
        alternative="Scatter of the sink ratio that is left against the spike plateau that is left. "
        + record.dissociation.sentence,
    )
