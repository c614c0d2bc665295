"""The pictures of a study: the plane of spikes and sinks, the paper's numbers beside ours, sizes, learning curves."""

import re
from collections.abc import Callable

import altair as alt
import numpy as np

from spikesink.records.study import StudyRecord, VariantRow
from spikesink.records.training import thinned
from spikesink.report.drawing import (
    BLUE,
    GREY,
    HEIGHT,
    ORANGE,
    STEPS,
    Figure,
    Rows,
    colours,
    dashes,
    drawing,
    layered,
    line_legend,
    log_scale,
    magnitude_axis,
    table,
)
from spikesink.report.format import counted, listed, number

CURVES = {
    "loss_nats": ("Training loss", "loss, nats", False),
    "spike": ("Largest magnitude while training", "largest magnitude", True),
    "max_over_median": ("Largest magnitude over the median while training", "max / median", True),
    "sink_ratio": ("Sink ratio while training", "sink ratio", False),
}
POINTS = 200
PLANE = ("sink_ratio", "spike", "max_over_median", "perplexity")
UP = ("spike_max_over_median", "max / median at the spike's block")
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right"]
SOURCES = ("here", "paper (7B, 100B tokens)")
PAPER = {"sink_ratio": "Sink ratio", "spike": "Spike", "perplexity": "Perplexity"}

SCALED = {
    "spike": ("~s", None),
    "sink_ratio": ("%", alt.Scale(domainMin=0)),
    "perplexity": ("~g", alt.Scale(zero=False)),
}
"""What is drawn over size: format and scale of its axis; without one, logarithmic."""


def study_figures(study: StudyRecord) -> list[Figure]:
    """Where variants stand; beside the paper; learning curves; over size where sizes differ."""
    figures: list[Figure | None] = [_plane(study), *[_beside_paper(study, name) for name in PAPER]]
    figures += [_scaling(study, name) for name in SCALED]
    figures += [_curve(study, name) for name in CURVES]
    return [figure for figure in figures if figure is not None]


def name_of(study: StudyRecord, name: str) -> str:
    """Name of a chart or section, as a file or an id may be called: several studies may stand on one page, and a
    study's own name is anybody's text."""
    return re.sub(r"\W", "_", f"study_{study.study}_{study.preset}_{name}", flags=re.ASCII)


def _finished(study: StudyRecord) -> list[VariantRow]:
    return [row for row in study.rows if row.seeds]


def _plane(study: StudyRecord) -> Figure | None:
    """Every seed of every variant: sink ratio against how extreme the spike is, free of scale; of records from before
    the rules that ask for it, against the largest magnitude, which any norm on the writes makes another."""
    finished = _finished(study)
    spike, title = UP if all(UP[0] in row.values for row in finished) else ("spike", "largest magnitude")
    shown = list(dict.fromkeys((spike, *PLANE)))
    rows: Rows = [
        {"variant": row.variant, "seed": seed, **{name: row.values[name][index] for name in shown}}
        for row in finished
        for index, seed in enumerate(row.seeds)
    ]
    if not rows:
        return None
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    spikes = [row[spike] for row in rows]
    shapes = alt.Scale(domain=variants, range=(SHAPES * len(variants))[: len(variants)])
    x = alt.X("sink_ratio:Q", title="sink ratio", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[-0.02, 1.02]))
    y = alt.Y(f"{spike}:Q", title=title, scale=log_scale(spikes), axis=magnitude_axis(spikes))
    tips = ["variant:N", "seed:N", *[alt.Tooltip(f"{name}:Q", format=",.4~g") for name in shown]]
    points = drawing().mark_point(filled=True, size=70, opacity=0.9).encode(
        x, y,
        alt.Color("variant:N", title=None, scale=colours(variants), sort=variants),
        alt.Shape("variant:N", title=None, scale=shapes, sort=variants),
        tooltip=tips,
    )  # fmt: skip
    # A predicate, not an expression: a variant's name is anybody's text.
    is_baseline = alt.FieldEqualPredicate(field="variant", equal=study.baseline)
    rings = drawing().mark_point(size=220, filled=False, strokeWidth=1.5, color=GREY).encode(x, y)
    return Figure(
        name=name_of(study, "plane"),
        wide=True,
        key=True,
        title="Do spikes and sinks come apart?",
        chart=layered(rings.transform_filter(is_baseline), points, height=HEIGHT + 80),
        rows=table(rows),
        caption=f"One point a seed: up, spikes; right, sinks. Ringed: the baseline, {study.baseline}.",
        conditions=conditions(study),
        alternative=f"Scatter of {counted(len(rows), 'run')} of {counted(len(variants), 'variant')}; the table has "
        "every number.",
    )


def _beside_paper(study: StudyRecord, metric: str) -> Figure | None:
    """Our mean with the lowest and highest seed, and the paper's, one row a variant."""
    rows: Rows = []
    for row in _finished(study):
        values = row.values[metric]
        ours = {"value": row.measured[metric].mean, "low": min(values), "high": max(values), "n": len(values)}
        rows.append({"variant": row.variant, "source": SOURCES[0], **ours})
        if row.paper is not None:
            rows.append({"variant": row.variant, "source": SOURCES[1], "value": getattr(row.paper, metric)})
    if not any(row["source"] == SOURCES[1] for row in rows):
        return None
    logarithmic = metric != "sink_ratio"
    values = [row["value"] for row in rows] + [row["low"] for row in rows if "low" in row]
    scale = log_scale(values) if logarithmic else alt.Scale(domainMin=0)
    axis = alt.Axis(format="%") if metric == "sink_ratio" else magnitude_axis(values)
    order = [row.variant for row in study.rows]
    base = drawing().encode(
        alt.Y("variant:N", title=None, sort=order, axis=alt.Axis(grid=True)),
        alt.Color("source:N", title=None, scale=colours(SOURCES, [BLUE, ORANGE])),
    )
    tips = ["variant:N", "source:N", "n:Q", *[alt.Tooltip(f"{n}:Q", format=",.4~g") for n in ("value", "low", "high")]]
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        alt.X("value:Q", title=PAPER[metric].lower(), scale=scale, axis=axis),
        alt.Shape("source:N", title=None, scale=alt.Scale(domain=list(SOURCES), range=["circle", "diamond"])),
        tooltip=tips,
    )
    bars = base.mark_rule(strokeWidth=2).encode(alt.X("low:Q"), alt.X2("high:Q")).transform_filter("isValid(datum.low)")
    return Figure(
        name=name_of(study, f"paper_{metric}"),
        title=f"{PAPER[metric]} beside the paper's",
        chart=layered(bars, points, height=max(110, 26 * len(order))),
        rows=table(rows),
        caption="Mean, lowest and highest seed, and the paper's single run. Models and data differ in size by "
        "orders of magnitude: compare the order and the ratio to the baseline, not the values.",
        conditions=conditions(study),
        alternative=f"Dots of {PAPER[metric].lower()} by variant, ours and the paper's; the table has every number.",
    )


def _scaling(study: StudyRecord, metric: str) -> Figure | None:
    """Over parameters, one line a family of variants, where a study has several sizes."""
    finished = [row for row in _finished(study) if row.parameters]
    if len({row.parameters for row in finished if "_x" in row.variant}) < 3:
        return None
    rows: Rows = [
        {"family": row.variant.rsplit("_x", 1)[0], "variant": row.variant, "parameters": row.parameters, "value": value}
        for row in finished
        if "_x" in row.variant
        for value in row.values[metric]
    ]
    families = list(dict.fromkeys(row["family"] for row in rows))
    scale = SCALED[metric][1] or log_scale(row["value"] for row in rows)
    axis = alt.Axis(format=SCALED[metric][0])
    base = drawing().encode(
        alt.X("parameters:Q", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format="~s", grid=False)),
        alt.Color("family:N", title=None, scale=colours(families), legend=line_legend()),
    )
    tips = ["variant:N", alt.Tooltip("parameters:Q", format=","), alt.Tooltip("value:Q", format=",.4~g")]
    line = base.mark_line(strokeWidth=2).encode(
        alt.Y("mean(value):Q", title=PAPER[metric].lower(), scale=scale, axis=axis),
        alt.StrokeDash("family:N", title=None, scale=dashes(families)),
    )
    points = base.mark_point(filled=True, size=40, opacity=0.8).encode(alt.Y("value:Q"), tooltip=tips)
    return Figure(
        name=name_of(study, f"scaling_{metric}"),
        title=f"{PAPER[metric]} over size",
        chart=layered(line, points),
        rows=table(rows),
        caption="One point a seed, the line through the means; logarithmic in parameters.",
        conditions=conditions(study),
        alternative=f"{PAPER[metric]} over parameters for {listed(families)}.",
    )


def _curve(study: StudyRecord, name: str) -> Figure | None:
    title, axis, logarithmic = CURVES[name]
    variants = list(dict.fromkeys(cell.variant for cell in study.cells if name in cell.curves))
    rows = [point for variant in variants for point in _mean(study, variant, name)]
    if not rows:
        return None
    lows = [row["low"] for row in rows]
    scale = log_scale(lows) if logarithmic else alt.Scale(zero=False)
    base = drawing().encode(
        STEPS,
        alt.Color("variant:N", title=None, scale=colours(variants), sort=variants, legend=line_legend()),
    )
    line = base.mark_line(strokeWidth=2).encode(
        alt.Y("value:Q", title=axis, scale=scale, axis=magnitude_axis(lows) if logarithmic else alt.Axis()),
        alt.StrokeDash("variant:N", title=None, scale=dashes(variants), sort=variants),
    )
    band = base.mark_area(opacity=0.15).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    tips = ["variant:N", "step:Q", *[alt.Tooltip(f"{field}:Q", format=",.4~g") for field in ("value", "low", "high")]]
    points = base.mark_point(filled=True, size=20, opacity=0.01).encode(alt.Y("value:Q"), tooltip=tips)
    layers: list[alt.Chart] = [band, line, points] if len(variants) <= 6 else [line, points]
    banded = "; the band from the lowest to the highest seed" if len(variants) <= 6 else ""
    return Figure(
        name=name_of(study, f"curve_{name}"),
        title=title,
        chart=layered(*layers),
        rows=table(rows),
        caption=f"Mean over seeds{banded}; each model on held-out sequences of the data that it was trained on.",
        conditions=conditions(study),
        alternative=f"Learning curves of {counted(len(variants), 'variant')}: {axis} over steps.",
    )


def _mean(study: StudyRecord, variant: str, name: str) -> Rows:
    """Mean, lowest and highest over the seeds that have a value at a step."""
    by_step: dict[int, list[float]] = {}
    for cell in study.cells:
        curve = cell.curves.get(name)
        if cell.variant == variant and curve is not None:
            for step, value in zip(curve.step, curve.value, strict=True):
                by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    reduce: dict[str, Callable[[list[float]], float]] = {"value": lambda x: float(np.mean(x)), "low": min, "high": max}
    return [
        {"variant": variant, "step": step, "seeds": len(by_step[step])}
        | {field: of(by_step[step]) for field, of in reduce.items()}
        for step in steps[thinned(len(steps), POINTS)]
    ]


def conditions(study: StudyRecord) -> str:
    """Study, preset, seeds and tokens, in one sentence."""
    seeds = sorted({len(row.seeds) for row in study.rows})
    n = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else counted(seeds[0] if seeds else 0, "seed")
    tokens = sorted({row.tokens for row in study.rows})
    shown = " to ".join(number(value) for value in dict.fromkeys((tokens[0], tokens[-1]))) if tokens else "no"
    return f"{study.study} at {study.preset}, {n} a variant, {shown} tokens a run."
