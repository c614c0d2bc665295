"""What one or several studies say: the verdicts, the table beside the paper's, the charts."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import altair as alt
import numpy as np

from spikesink.records.study import Effect, Spread, StudyRecord, VariantRow, VariantVerdict
from spikesink.report.conditions import condition_table, line
from spikesink.report.document import Document, Merit, Part, Statement, Table
from spikesink.report.drawing import (
    BLUE,
    GREY,
    HEIGHT,
    ORANGE,
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
from spikesink.report.format import NONE, counted, listed, number, percent
from spikesink.report.next_step import next_step

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


def conditions(study: StudyRecord) -> str:
    """Study, preset, seeds and tokens, in one sentence."""
    seeds = sorted({len(row.seeds) for row in study.rows})
    n = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else counted(seeds[0] if seeds else 0, "seed")
    tokens = sorted({row.tokens for row in study.rows})
    shown = " to ".join(number(value) for value in dict.fromkeys((tokens[0], tokens[-1]))) if tokens else "no"
    return f"{study.study} at {study.preset}, {n} a variant, {shown} tokens a run."


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
        alt.X("step:Q", title="step", axis=alt.Axis(grid=False)),
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
        caption=f"Mean over seeds{banded}.",
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
    every = max(1, len(steps) // POINTS)
    reduce: dict[str, Callable[[list[float]], float]] = {"value": lambda x: float(np.mean(x)), "low": min, "high": max}
    return [
        {"variant": variant, "step": step, "seeds": len(by_step[step])}
        | {field: of(by_step[step]) for field, of in reduce.items()}
        for step in steps[::every]
    ]


METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "perplexity": ("perplexity", lambda value: number(value, 4)),
    "sink_ratio": ("sink ratio", percent),
    "spike": ("spike", lambda value: number(value, 4)),
    "max_over_median": ("max / median", number),
    "first_token_importance": ("first token", number),
}

UNBOUNDED = 1e30
"""An interval's upper end from here on has no bound: some resample of the baseline was 0."""


def study_document(studies: Sequence[StudyRecord]) -> Document:
    """Every study in its own sections."""
    titles = [f"{study.study} at {study.preset}" for study in studies]
    return Document(
        kind="study",
        title=listed(titles, 4),
        lead=" ".join(study.about for study in studies),
        statements=[statement for study in studies for statement in study_statements(study, len(studies) > 1)],
        merits=_merits(studies),
        sections=[section for study in studies for section in _sections(study, len(studies) > 1)],
        conditions=[(title, condition_table(study)) for title, study in zip(titles, studies, strict=True)],
        condition=line(studies[0]) if len(studies) == 1 else "",
        next=next_step(studies[0]) if len(studies) == 1 else None,
    )


def study_statements(study: StudyRecord, several: bool = False) -> list[Statement]:
    """Which variants got which verdict, and which claims are decided."""
    prefix = f"{study.study} at {study.preset}: " if several else ""
    counts = Counter(judged.verdict for judged in study.verdicts)
    statements = []
    for verdict in counts:
        names = [_effects_in_words(judged) for judged in study.verdicts if judged.verdict == verdict]
        text = f"{listed(names, 12)}; {counts[verdict]} of {counted(len(study.verdicts), 'variant')}, against "
        text += f"{study.baseline}."
        statements.append(
            Statement(f"{prefix}{verdict[0].upper()}{verdict[1:]}", text, measured=verdict != "undecided")
        )
    decided = [claim for claim in study.claims if claim.verdict in ("supported", "contradicted", "mixed")]
    statements += [
        Statement(f"{prefix}{claim.title} {claim.verdict}", f"{claim.text} {_plain(claim.evidence)}")
        for claim in decided
    ]
    few = min((len(row.seeds) for row in study.rows), default=0)
    if counts["undecided"] and few < study.rules.get("seeds_min", 0):
        text = f"{counted(few, 'seed')} of a variant finished; at least {study.rules['seeds_min']:g} decide."
        statements.append(Statement(f"{prefix}Seeds", text, measured=False))
    return statements or [
        Statement(f"{prefix}No verdict", "No variant has finished beside the baseline.", measured=False)
    ]


def _plain(text: str) -> str:
    """Without the marks that Markdown has for code."""
    return text.replace("`", "")


def _effects_in_words(verdict: VariantVerdict) -> str:
    """sandwich (spike × 0.037 falls, sink ratio × 0.67 unclear)."""
    effects = {effect.metric: effect for effect in verdict.effects}
    parts = [
        f"{METRICS[name][0]} × {number(effects[name].ratio, 2)} {effects[name].change}"
        for name in ("spike", "sink_ratio")
        if name in effects
    ]
    return f"{verdict.variant} ({', '.join(parts)})" if parts else verdict.variant


def _merits(studies: Sequence[StudyRecord]) -> list[Merit]:
    rows = [row for study in studies for row in study.rows]
    finished = sum(len(row.seeds) for row in rows)
    lost = sum(row.diverged + row.failed for row in rows)
    return [
        Merit("variants", f"{len(rows)}", note="with the baseline"),
        Merit("runs finished", f"{finished}", note=f"{lost} diverged or failed"),
        Merit("tokens seen", float(sum(row.tokens * len(row.seeds) for row in rows)), note="in all runs"),
    ]


def _sections(study: StudyRecord, several: bool) -> list[Part]:
    title = f"{study.study} at {study.preset}" if several else ""

    def section(name: str, heading: str, intro: str, **parts: object) -> Part:
        whole = f"{title}: {heading[0].lower()}{heading[1:]}" if title else heading
        return Part(name_of(study, f"section_{name}"), whole, intro, label=heading, **parts)  # type: ignore[arg-type]

    figures = study_figures(study)
    curves = [figure for figure in figures if "_curve_" in figure.name]
    shown = [figure for figure in figures if figure not in curves]
    return [
        part
        for part in (
            section("table", "The table, beside the paper's", study.about, tables=[_table(study), *_lines(study)]),
            section("charts", "Where the variants stand", "", figures=shown),
            section("verdicts", "Verdicts", "By rules that were fixed before the first run.", tables=_verdicts(study)),
            section("curves", "Learning curves", "", figures=curves),
        )
        if not part.empty
    ]


def _table(study: StudyRecord) -> Table:
    columns = ["variant"]
    for name, (title, _) in METRICS.items():
        columns += [title, "paper"] if name in PAPER else [title]
    return Table(
        "Mean ± standard deviation (seeds)", columns, [_row(row) for row in study.rows],
        ["strong" if row.variant == study.baseline else "" for row in study.rows],
        note=f"Paper: 7B parameters, 100B tokens, one run. Bold: the baseline. {conditions(study)}",
    )  # fmt: skip


def _row(row: VariantRow) -> list[str]:
    """Each figure of ours, and behind it the paper's where it has one."""
    lost = "".join(f", {count} {what}" for what, count in (("diverged", row.diverged), ("failed", row.failed)) if count)
    cells = [row.variant + lost]
    for name, (_, show) in METRICS.items():
        cells.append(_spread(row.measured.get(name), show))
        if name in PAPER:
            cells.append(show(getattr(row.paper, name)) if row.paper else NONE)
    return cells


def _spread(spread: Spread | None, show: Callable[[float], str]) -> str:
    if spread is None:
        return NONE
    sd = "" if spread.sd is None else f" ± {percent(spread.sd) if show is percent else number(spread.sd, 2)}"
    return f"{show(spread.mean)}{sd} ({spread.n})"


def _lines(study: StudyRecord) -> list[Table]:
    """What has no figures, and why."""
    tables = []
    if study.errors:
        tables.append(Table("Runs without a result", ("what happened",), [[line] for line in study.errors]))
    if study.left_out:
        rows = [[variant, reason] for variant, reason in study.left_out.items()]
        tables.append(Table("Left out: the recipe is too small for them", ("variant", "reason"), rows))
    return tables


def _verdicts(study: StudyRecord) -> list[Table]:
    names = list(dict.fromkeys(effect.metric for judged in study.verdicts for effect in judged.effects))
    rows = [
        [judged.variant, judged.verdict, *[_effect(judged.effects, name) for name in names]]
        for judged in study.verdicts
    ]
    summaries = {row.variant: row for row in study.rows}
    changes = [
        [row.variant, _plain(row.summary), "; ".join(row.changes) or "as the preset"] for row in summaries.values()
    ]
    rules = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in study.rules.items())
    claims = [[f"{claim.title}: {claim.text}", claim.verdict, _plain(claim.evidence)] for claim in study.claims]
    tables = []
    if rows:
        header = (
            "variant",
            "verdict",
            *[METRICS[name][0] if name in METRICS else name.replace("_", " ") for name in names],
        )
        title = "Variant over baseline, with its 95 % interval over seeds"
        tables.append(Table(title, header, rows, words=len(header), note=f"Rules: {rules}."))
    if claims:
        tables.append(Table("The paper's claims", ("claim", "verdict", "evidence"), claims, words=3))
    return [*tables, Table("What each variant changes", ("variant", "what", "change"), changes, words=3)]


def _effect(effects: Sequence[Effect], metric: str) -> str:
    chosen = next((effect for effect in effects if effect.metric == metric), None)
    if chosen is None:
        return NONE
    high = number(chosen.high) if chosen.high < UNBOUNDED else "unbounded"
    return f"× {number(chosen.ratio)} [{number(chosen.low)}, {high}] {chosen.change}"
