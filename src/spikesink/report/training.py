"""Loss, spike and sinks over the steps of one or several training runs."""

from typing import Any

import altair as alt

from spikesink.records import TrainingRun
from spikesink.records.training import thinned
from spikesink.report.document import Part, Statement
from spikesink.report.drawing import (
    HEIGHT,
    RAMP,
    STEPS,
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
LINEAR = alt.Scale(zero=False, nice=True)
TIP = alt.Tooltip("value:Q", format=".5~g")
HIDDEN: dict[str, Any] = {"size": 14, "opacity": 0.01}
"""Points that show only under the pointer."""
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
    figures = [
        curve_figure(
            "training", name, [(run, _points(record, name)) for run, record in runs], key=name in KEY,
            conditions=_conditions(runs),
        )
        for name in CURVES
    ]  # fmt: skip
    layers = [_layers(*run, "sink_ratio", "Sink ratio by layer") for run in runs] if len(runs) == 1 else []
    return [figure for figure in [*figures, *layers] if figure is not None]


def _points(record: TrainingRun, name: str) -> Rows:
    if name not in record.arrays:
        return []
    steps, values = record.arrays[f"{name}.step"], record.arrays[name]
    shown = thinned(len(steps), POINTS)
    return [{"step": int(step), "value": float(value)} for step, value in zip(steps[shown], values[shown], strict=True)]


def curve_figure(
    kind: str, name: str, points: list[tuple[str, Rows]], *, key: bool, conditions: str, steps: int | None = None
) -> Figure | None:
    """One of CURVES, a line for each run of its points; None where no run has any. steps: default that of the last
    point."""
    title, axis, logarithmic = CURVES[name]
    rows = [{"run": run, **point} for run, of_run in points for point in of_run]
    if not rows:
        return None
    ends = listed([f"{run} {number(of_run[-1]['value'])}" for run, of_run in points if of_run])
    values = [row["value"] for row in rows]
    scale, ticks = (log_scale(values), magnitude_axis(values)) if logarithmic else (LINEAR, alt.Axis())
    return Figure(
        name=f"{kind}_{name.split('/')[-1]}",
        title=title,
        key=key,
        chart=lines(
            "run", [run for run, _ in points], STEPS, alt.Y("value:Q", title=axis, scale=scale, axis=ticks),
            ["run:N", "step:Q", TIP], **HIDDEN, legend=len(points) > 1, height=HEIGHT - 60,
        ),
        rows=table(rows),
        caption=f"At the end: {ends}.",
        conditions=conditions,
        alternative=f"Line chart of {axis} over {steps or rows[-1]['step']:,} steps; at the end {ends}.",
    )  # fmt: skip


def _layers(run: str, record: TrainingRun, name: str, title: str) -> Figure | None:
    rows: Rows = []
    layer = 0
    while points := _points(record, f"spikesink/layer_{layer}/{name}"):
        rows += [{"layer": layer, **point} for point in points]
        layer += 1
    if not rows:
        return None
    base = drawing().encode(
        STEPS,
        alt.Y("value:Q", title=name.replace("_", " "), scale=LINEAR),
        alt.Color("layer:Q", title="layer", scale=alt.Scale(scheme=RAMP, domain=[0, max(1, layer - 1)])),
    )
    return Figure(
        name=f"training_layers_{name}",
        title=title,
        chart=layered(
            base.mark_line(strokeWidth=2).encode(alt.Detail("layer:Q")),
            base.mark_point(filled=True, **HIDDEN).encode(tooltip=["layer:Q", "step:Q", TIP]),
            height=HEIGHT - 60,
        ),
        rows=table(rows),
        caption="One line a layer, counted from 0: dark the first, light the last.",
        conditions=_conditions([(run, record)]),
        alternative=f"Line chart of {title.lower()} over training.",
    )


def _conditions(runs: Runs) -> str:
    first = runs[0][1]
    tokens = first.provenance.tokens
    monitor = first.recipe.get("monitor") or {}
    probe = (
        f"; probe of {monitor['sequences']} sequences every {monitor['every']} steps" if monitor.get("every") else ""
    )
    return f"{tokens.get('source')}, {tokens.get('seq_len')} tokens a sequence{probe}."
