"""Loss, spike and sinks over the steps of one or several training runs."""

import altair as alt

from spikesink.records import TrainingRun
from spikesink.records.training import thinned
from spikesink.report.document import Part, Statement
from spikesink.report.drawing import (
    HEIGHT,
    RAMP,
    Figure,
    Rows,
    drawing,
    layered,
    lines,
    log_scale,
    magnitude_axis,
    table,
)
from spikesink.report.format import listed, number, percent

CURVES = {
    "loss": ("Training loss", "loss, nats", False),
    "eval_loss": ("Held-out loss", "loss, nats", False),
    "spikesink/spike": ("Largest magnitude", "largest magnitude", True),
    "spikesink/max_over_median": ("Largest magnitude over the median", "max / median", True),
    "spikesink/sink_ratio": ("Sink ratio", "sink ratio", False),
}
POINTS = 400
"""Of a curve that are drawn; every n-th where there are more, and the last."""

Runs = list[tuple[str, TrainingRun]]


KEY = ("loss", "spikesink/max_over_median", "spikesink/sink_ratio")


def training_part(record: TrainingRun) -> Part:
    """Loss, spike and sinks while the model was trained."""
    intro = f"{record.steps:,} steps, {record.tokens:,} tokens, {record.parameters:,} parameters."
    return Part("training", "While it was trained", intro, figures=training_figures([(record.name, record)]))


def training_statement(record: TrainingRun) -> Statement:
    """How the run ended."""
    text = f"{record.parameters:,} parameters, {record.steps:,} steps, {record.tokens:,} tokens; held-out loss "
    text += f"{record.held_out_loss_nats:.3f} nats."
    entropy, seen = record.provenance.tokens.get("entropy_nats"), record.anatomy
    if entropy is not None:
        text += f" No model can do better than {entropy:.3f} nats, the entropy of the data."
    if "spike" in seen:
        text += f" The monitor's last reading: largest magnitude {number(seen['spike'])}"
        text += f", {number(seen['max_over_median'])} × the median" if "max_over_median" in seen else ""
        text += f", sink ratio {percent(seen['sink_ratio'])}" if "sink_ratio" in seen else ""
        text += "."
    return Statement("Training", text)


def training_figures(runs: Runs) -> list[Figure]:
    """One chart a curve, one line a run; curves that no run has are left out."""
    figures = [_curve(runs, name) for name in CURVES]
    layers = [_layers(*run, "sink_ratio", "Sink ratio by layer") for run in runs] if len(runs) == 1 else []
    return [figure for figure in [*figures, *layers] if figure is not None]


def _points(record: TrainingRun, name: str) -> Rows:
    if name not in record.arrays:
        return []
    steps, values = record.arrays[f"{name}.step"], record.arrays[name]
    shown = thinned(len(steps), POINTS)
    return [{"step": int(step), "value": float(value)} for step, value in zip(steps[shown], values[shown], strict=True)]


def _curve(runs: Runs, name: str) -> Figure | None:
    title, axis, logarithmic = CURVES[name]
    rows = [{"run": run, **point} for run, record in runs for point in _points(record, name)]
    if not rows:
        return None
    ends = listed(
        [f"{run} {number(_points(record, name)[-1]['value'])}" for run, record in runs if name in record.arrays]
    )
    return Figure(
        name=f"training_{name.split('/')[-1]}",
        title=title,
        key=name in KEY,
        chart=step_lines("run", [run for run, _ in runs], axis, rows, logarithmic),
        rows=table(rows),
        caption=f"At the end: {ends}.",
        conditions=_conditions(runs),
        alternative=f"Line chart of {axis} over {rows[-1]['step']:,} steps; at the end {ends}.",
    )


def _layers(run: str, record: TrainingRun, name: str, title: str) -> Figure | None:
    rows: Rows = []
    layer = 0
    while points := _points(record, f"spikesink/layer_{layer}/{name}"):
        rows += [{"layer": layer, **point} for point in points]
        layer += 1
    if not rows:
        return None
    base = drawing().encode(
        alt.X("step:Q", title="step", axis=alt.Axis(grid=False)),
        alt.Y("value:Q", title=name.replace("_", " "), scale=alt.Scale(zero=False, nice=True)),
        alt.Color("layer:Q", title="layer", scale=alt.Scale(scheme=RAMP, domain=[0, max(1, layer - 1)])),
    )
    tips = ["layer:Q", "step:Q", alt.Tooltip("value:Q", format=".5~g")]
    return Figure(
        name=f"training_layers_{name}",
        title=title,
        chart=layered(
            base.mark_line(strokeWidth=2).encode(alt.Detail("layer:Q")),
            base.mark_point(filled=True, size=14, opacity=0.01).encode(tooltip=tips),
            height=HEIGHT - 60,
        ),
        rows=table(rows),
        caption="One line a layer, counted from 0: dark the first, light the last.",
        conditions=_conditions([(run, record)]),
        alternative=f"Line chart of {title.lower()} over training.",
    )


def step_lines(field: str, names: list[str], axis: str, rows: Rows, logarithmic: bool) -> alt.LayerChart:
    """A line for each name over the steps of a training; the points show only under the pointer."""
    values = [row["value"] for row in rows]
    scale = log_scale(values) if logarithmic else alt.Scale(zero=False, nice=True)
    ticks = magnitude_axis(values) if logarithmic else alt.Axis()
    return lines(
        field, names,
        alt.X("step:Q", title="step", axis=alt.Axis(grid=False)),
        alt.Y("value:Q", title=axis, scale=scale, axis=ticks),
        [f"{field}:N", "step:Q", alt.Tooltip("value:Q", format=".5~g")],
        size=14, opacity=0.01, legend=len(names) > 1, height=HEIGHT - 60,
    )  # fmt: skip


def _conditions(runs: Runs) -> str:
    first = runs[0][1]
    tokens = first.provenance.tokens
    monitor = first.recipe.get("monitor") or {}
    probe = (
        f"; probe of {monitor['sequences']} sequences every {monitor['every']} steps" if monitor.get("every") else ""
    )
    return f"{tokens.get('source')}, {tokens.get('seq_len')} tokens a sequence{probe}."
