"""The charts of a survey: where cells stand, life cycles over each other, what appears while a model is trained."""

from collections.abc import Callable, Sequence

import altair as alt

from spikesink.records.survey import SurveyRow
from spikesink.report.compare import depth_axis
from spikesink.report.drawing import Figure, colours, drawing, layered, lines, log_scale, magnitude_axis, table
from spikesink.report.format import counted, listed, number

MOST_LINES = 10
"""In one chart; more cannot be told apart."""
MOST_POINTS = 400
Value = Callable[[SurveyRow], float | None]
OVER_TRAINING: dict[str, tuple[str, Value]] = {
    "max_over_median": ("Largest magnitude over the median", lambda row: row.max_over_median),
    "sink_ratio": ("Sink ratio", lambda row: row.sink_ratio.value if row.sink_ratio else None),
    "perplexity": ("Perplexity", lambda row: row.perplexity.value if row.perplexity else None),
    "step_up": ("First step-up block", lambda row: row.step_up_blocks[0] if row.step_up_blocks else None),
}


def atlas_figures(rows: Sequence[SurveyRow]) -> list[Figure]:
    """Spikes against sinks, and the life cycles."""
    return [_plane(rows), _life_cycles(rows)] if rows else []


def _plane(rows: Sequence[SurveyRow]) -> Figure:
    content = [
        {"model": row.label, "condition": row.condition, "norms": row.arrangement, "family": row.family,
         "sink_ratio": row.sink_ratio.value if row.sink_ratio else None, "max_over_median": row.max_over_median,
         "spike": row.spike, "has_spikes": row.has_spikes}
        for row in rows
    ]  # fmt: skip
    norms = sorted({str(row.arrangement) for row in rows})
    values = [row.max_over_median for row in rows]
    scale, axis = log_scale(values), magnitude_axis(values)
    numbers = [alt.Tooltip(f"{name}:Q", format=",.4~g") for name in ("sink_ratio", "max_over_median", "spike")]
    points = drawing().mark_point(filled=True, size=64, opacity=0.75).encode(
        alt.X("sink_ratio:Q", title="sink ratio", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        alt.Y("max_over_median:Q", title="largest magnitude / median", scale=scale, axis=axis),
        alt.Color("norms:N", title="norms", scale=colours(norms)),
        alt.Shape("norms:N", title="norms", scale=alt.Scale(domain=norms)),
        tooltip=[*[f"{name}:N" for name in ("model", "condition", "norms", "family")], *numbers],
    )  # fmt: skip
    by_norm = [f"{norm}: {sum(str(row.arrangement) == norm for row in rows)}" for norm in norms]
    return Figure(
        name="atlas_plane",
        title="Where every cell stands",
        chart=layered(points),
        rows=table(content),
        caption=f"One point a cell ({counted(len(rows), 'cell')}; {listed(by_norm)}).",
        alternative=f"Scatter of {len(rows)} cells by sink ratio and largest magnitude over the median.",
        wide=True,
    )


def _life_cycles(rows: Sequence[SurveyRow]) -> Figure:
    firsts = list({row.model: row for row in reversed(rows)}.values())[::-1]
    shown = firsts[:MOST_LINES]
    content = [
        {"model": row.model, "depth": (index + 1) / len(row.life_cycle), "magnitude": value}
        for row in shown
        for index, value in enumerate(row.life_cycle)
    ]
    values = [line["magnitude"] for line in content]
    y = alt.Y("magnitude:Q", title="largest magnitude", scale=log_scale(values), axis=magnitude_axis(values))
    tips = ["model:N", "depth:Q", alt.Tooltip("magnitude:Q", format=",.4~g")] if len(content) <= MOST_POINTS else []
    more = f" The first {MOST_LINES} of {len(firsts)} models." if len(firsts) > MOST_LINES else ""
    return Figure(
        name="atlas_life_cycles",
        title="Life cycles",
        chart=lines("model", [row.model for row in shown], depth_axis(), y, tips),
        rows=table(content),
        caption=f"Largest magnitude after each block, by depth; of each model its first revision and condition.{more}",
        alternative="Life cycles. Largest: " + listed([f"{row.model} {number(row.spike)}" for row in shown]) + ".",
        wide=True,
    )


def trained(rows: Sequence[SurveyRow]) -> dict[tuple[str, str], list[SurveyRow]]:
    """Rows of models that were measured after several steps, by model and condition, in the order of steps."""
    groups: dict[tuple[str, str], list[SurveyRow]] = {}
    for row in rows:
        if row.step is not None:
            groups.setdefault((row.model, row.condition), []).append(row)
    return {key: sorted(of, key=lambda row: row.step or 0) for key, of in groups.items() if len(of) > 1}


def over(row: SurveyRow) -> tuple[float, str]:
    """What training is measured in: tokens where they are known, else steps."""
    return (row.tokens_trained, "tokens") if row.tokens_trained is not None else (row.step or 0, "steps")


def emergence_figures(rows: Sequence[SurveyRow]) -> list[Figure]:
    """Spike, sink ratio, perplexity and step block over training; none without revisions."""
    groups = dict(list(trained(rows).items())[:MOST_LINES])
    figures = []
    units = sorted({over(row)[1] for of in groups.values() for row in of})
    for name, (title, value) in OVER_TRAINING.items() if groups else ():
        content = [
            {"model": model, "condition": condition, "at": over(row)[0], "step": row.step, name: value(row)}
            for (model, condition), of in groups.items()
            for row in of
        ]
        names = list(dict.fromkeys(model for model, _ in groups))
        values = [line[name] for line in content if line[name] is not None]
        scale = log_scale(values) if name in ("max_over_median", "perplexity") else alt.Scale(zero=name == "sink_ratio")
        axis = alt.Axis(format="%" if name == "sink_ratio" else ",~g")
        x = alt.X("at:Q", title=f"training, {' or '.join(units)}", axis=alt.Axis(grid=False, format="~s"))
        tips = ["model:N", "step:Q", "condition:N", alt.Tooltip(f"{name}:Q", format=",.4~g")]
        figures.append(
            Figure(
                name=f"emergence_{name}",
                title=title,
                chart=lines("model", names, x, alt.Y(f"{name}:Q", title=title.lower(), scale=scale, axis=axis), tips),
                rows=table(content),
                caption=f"After each of {counted(len(content), 'checkpoint')} of {listed(names)}.",
                alternative=f"{title} over training: "
                + "; ".join(f"{line['step']} {number(line[name])}" for line in content[:12]) + ".",
            )
        )  # fmt: skip
    return figures
