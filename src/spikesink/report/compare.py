"""Several models, or one over training steps, side by side: the numbers, life cycles, sinks, training curves."""

import re
from collections.abc import Sequence

import altair as alt
import numpy as np

from spikesink.records import Anatomy, TrainingRun
from spikesink.records.deployment import Quantisation, is_damage
from spikesink.records.interventions import Interventions
from spikesink.report.conditions import condition_table, mind, shape
from spikesink.report.document import Document, Part, Statement, Table
from spikesink.report.drawing import Figure, Rows, drawing, layered, lines, log_scale, magnitude_axis, table
from spikesink.report.format import NONE, blocks, counted, listed, number, percent
from spikesink.report.interventions import cost_text
from spikesink.report.runs import Model, labels
from spikesink.report.training import training_figures

Named = Sequence[tuple[str, Anatomy]]
STEP = re.compile(r"(?:checkpoint|step)[-_ ]?(\d+)")


def steps_of(names: Sequence[str]) -> list[int] | None:
    """Training steps, where every name says its own: checkpoint-500, checkpoint-1000."""
    matches = [STEP.search(name) for name in names]
    steps = [int(match.group(1)) for match in matches if match]
    return steps if len(steps) == len(names) > 1 and len(set(steps)) == len(steps) else None


def compare_document(models: Sequence[Model]) -> Document:
    """A column a model: the numbers, the life cycles and the sinks over each other, the training curves."""
    names = labels(models)
    named = list(zip(names, models, strict=True))
    anatomies = [(name, model.anatomy) for name, model in named if model.anatomy is not None]
    trainings = [(name, model.training) for name, model in named if model.training is not None]
    steps = steps_of([name for name, _ in anatomies])
    sections = [
        Part("numbers", "The numbers", tables=[_table(named)]),
        Part(
            "charts",
            "Over training steps" if steps else "Side by side",
            "Depth is the block over the number of blocks, so that models of different depth lie over each other.",
            figures=compare_figures(anatomies, steps),
        ),
        Part("training", "While they were trained", figures=training_figures(trainings) if trainings else []),
    ]
    return Document(
        kind="comparison",
        title=listed(names, 4),
        lead=f"{len(models)} records side by side. Compare only what was measured under the same conditions.",
        statements=_statements(named, anatomies),
        sections=[section for section in sections if not section.empty],
        conditions=[
            (f"{name}: {source.record.file}", condition_table(source.record))
            for name, model in named
            for source in model.sources
        ],
    )


def _kinds(named: Sequence[tuple[str, Model]]) -> list[Statement]:
    """What each column is of; nothing where all are of the same kinds of record."""
    words = {Anatomy: "a scan", Interventions: "interventions", TrainingRun: "a training"}
    kinds = {name: sorted(words[type(source.record)] for source in model.sources) for name, model in named}
    if len(set(map(tuple, kinds.values()))) == 1:
        return []
    return [Statement("Records", "; ".join(f"{name}: {listed(made)}" for name, made in kinds.items()) + ".")]


def _statements(named: Sequence[tuple[str, Model]], anatomies: Named) -> list[Statement]:
    with_spikes = [name for name, record in anatomies if record.summary.has_spikes]
    with_sinks = [name for name, record in anatomies if record.summary.has_sinks]
    statements = _kinds(named)
    if anatomies:
        scanned = [name for name, _ in anatomies]
        statements += [
            Statement("Spikes", _finding(scanned, with_spikes, "spikes")),
            Statement("Sinks", _finding(scanned, with_sinks, "sinks")),
        ]
    changed = [(name, model.interventions) for name, model in named if model.interventions is not None]
    verdicts = tuple(f"{name}: {record.dissociation.verdict}." for name, record in changed if record.has_changes)
    if verdicts:
        statements.append(Statement("What breaks without them", "", verdicts))
    return statements + mind([source.record for _, model in named for source in model.sources])


def _finding(scanned: list[str], found: list[str], what: str) -> str:
    """Which of the scans find spikes, or sinks."""
    if len(scanned) == 1:
        return f"The scan of {scanned[0]} finds {what if found else f'no {what}'}."
    which = f": {listed(found)}" if 0 < len(found) < len(scanned) else ""
    return f"{len(found)} of {counted(len(scanned), 'scan')} {'finds' if len(found) == 1 else 'find'} {what}{which}."


def _table(named: Sequence[tuple[str, Model]]) -> Table:
    columns = [_cells(model) for _, model in named]
    rows = [[label, *[cells.get(row, NONE) for cells in columns]] for label, row in _ROWS]
    rows = [row for row in rows if any(cell != NONE for cell in row[1:])]
    return Table("Side by side", ("", *[name for name, _ in named]), rows)


def _cells(model: Model) -> dict[str, str]:
    """What the records of a model have for the rows of the table, by the keys of `_ROWS`."""
    anatomy, interventions, training = model.anatomy, model.interventions, model.training
    cells: dict[str, str] = {}
    if anatomy is not None:
        summary = anatomy.summary
        cells |= {
            "spikes": "yes" if summary.has_spikes else "no", "spike": number(summary.spike),
            "over": number(summary.max_over_median), "channels": listed(summary.spike_channels, 4) or NONE,
            "up": blocks(summary.step_up_blocks, anatomy.placed),
            "down": blocks(summary.step_down_blocks, anatomy.placed),
            "sinks": percent(summary.sink_ratio), "gu": percent(summary.sink_ratio_gu2025),
            "first": number(anatomy.sinks.first_key_importance), "perplexity": number(summary.perplexity),
        }  # fmt: skip
    if interventions is not None:
        if interventions.has_changes:
            cells["verdict"] = interventions.dissociation.verdict
        zeroed = next((item for item in interventions.interventions if item.name == "zero_spikes"), None)
        if zeroed is not None and zeroed.loss_difference_nats is not None:
            cells["zero"] = cost_text(zeroed.loss_difference_nats)
        cells["keep"] = number(interventions.kv_cache.keep)
        cells |= _int8_cells(interventions.quantisation)
    if training is not None:
        cells["held"] = f"{training.held_out_loss_nats:.3f}"
    return cells


def _int8_cells(section: Quantisation) -> dict[str, str]:
    """What int8 with one scale per tensor breaks, where, and what mends it best."""
    rows, kind = section.int8(), section.worst_kind
    broken, cached = rows.get((kind or "", "tensor")), rows.get(("kv", "tensor"))
    cells = {"unmeasured": listed([text.partition(":")[0] for text in section.skipped]) or NONE}
    if cached is not None:
        cells["kv"] = cost_text(cached.loss_difference_nats)
    if broken is None or kind == "kv":
        return cells
    cells["int8"] = f"{kind} {cost_text(broken.loss_difference_nats)}"
    if is_damage(broken.loss_difference_nats):
        cells["worst"] = blocks(sorted(section.worst_blocks))
        cells["modules"] = listed(section.worst_modules, 4) or NONE
        remedies = [row for row in section.remedies if row.applicable]
        best = min(remedies, key=lambda row: row.perplexity.value, default=None)
        cells["remedy"] = NONE if best is None else f"{best.remedy} {cost_text(best.loss_difference_nats)}"
    return cells


_ROWS = (
    ("has spikes", "spikes"),
    ("largest magnitude", "spike"),
    ("over the median", "over"),
    ("spike channels", "channels"),
    ("made by", "up"),
    ("taken away by", "down"),
    ("sink ratio", "sinks"),
    ("sink ratio, gu2025", "gu"),
    ("importance of the first key", "first"),
    ("perplexity", "perplexity"),
    ("verdict", "verdict"),
    ("cost of zeroing spikes, nats", "zero"),
    ("int8 per tensor, worst input, nats", "int8"),
    ("where it breaks", "worst"),
    ("linear maps there", "modules"),
    ("what mends it best, nats", "remedy"),
    ("linear maps not measured", "unmeasured"),
    ("KV cache in int8 per tensor, nats", "kv"),
    ("first tokens to keep", "keep"),
    ("held-out loss, nats", "held"),
)


def compare_figures(named: Named, steps: list[int] | None) -> list[Figure]:
    """Charts of two or more scans; none of fewer."""
    if len(named) < 2:
        return []
    over_steps = [_over_steps(named, steps)] if steps else []
    return [*over_steps, _lifecycles(named), _sinks(named), _numbers(named)]


def depth_axis() -> alt.X:
    """Blocks as a share of all, so that models of different depth lie over each other."""
    return alt.X("depth:Q", title="depth (block / blocks)", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(grid=False))


def _lifecycles(named: Named) -> Figure:
    rows: Rows = [
        {
            "model": name, "block": cycle.block, "depth": cycle.block / len(record.lifecycle.blocks),
            "over_median": cycle.resid_max_over_median, "magnitude": cycle.resid_top3[0].value,
        }
        for name, record in named
        for cycle in record.lifecycle.blocks
        if cycle.resid_top3
    ]  # fmt: skip
    names = [name for name, _ in named]
    values = [row["over_median"] for row in rows]
    y = alt.Y("over_median:Q", title="largest magnitude / median", scale=log_scale(values), axis=magnitude_axis(values))
    tips = [
        "model:N",
        "block:Q",
        *[alt.Tooltip(f"{field}:Q", format=",.4~g") for field in ("magnitude", "over_median")],
    ]
    ends = listed([f"{name} {number(record.summary.max_over_median)} ×" for name, record in named])
    return Figure(
        name="compare_lifecycle",
        title="Life cycles",
        chart=lines("model", names, depth_axis(), y, tips),
        rows=table(rows),
        caption=f"Largest magnitude in the residual stream over the block's median, by depth. Largest: {ends}.",
        conditions=_shapes(named),
        alternative=f"Line chart of {len(named)} life cycles. Largest over the median: {ends}.",
    )


def _sinks(named: Named) -> Figure:
    rows: Rows = []
    for name, record in named:
        by_block: dict[int, list[float]] = {}
        for head in record.sinks.heads:
            by_block.setdefault(head.block, []).append(head.sink_rate)
        rows += [
            {"model": name, "block": block, "depth": block / len(record.lifecycle.blocks),
             "sink_ratio": float(np.mean(rates))}
            for block, rates in by_block.items()
        ]  # fmt: skip
    ends = listed([f"{name} {percent(record.summary.sink_ratio)}" for name, record in named])
    y = alt.Y(
        "sink_ratio:Q", title="sink ratio of the block", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")
    )
    tips = ["model:N", "block:Q", alt.Tooltip("sink_ratio:Q", format=".1%")]
    return Figure(
        name="compare_sinks",
        title="Where heads sink",
        chart=lines("model", [name for name, _ in named], depth_axis(), y, tips),
        rows=table(rows),
        caption=f"Share of heads of each attention block that sink, mean over sequences. Over all heads: {ends}.",
        conditions=_shapes(named),
        alternative=f"Line chart of sink ratios by depth. Over all heads: {ends}.",
    )


def _numbers(named: Named) -> Figure:
    """Spike against sink: where each model stands."""
    rows = [
        {
            "model": name, "over_median": record.summary.max_over_median, "sink_ratio": record.summary.sink_ratio,
            "spike": record.summary.spike, "perplexity": record.summary.perplexity,
        }
        for name, record in named
    ]  # fmt: skip
    base = drawing().encode(
        alt.X("sink_ratio:Q", title="sink ratio", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        alt.Y("over_median:Q", title="largest magnitude / median", scale=alt.Scale(type="log")),
    )
    tips = [
        "model:N",
        *[alt.Tooltip(f"{name}:Q", format=",.4~g") for name in ("over_median", "sink_ratio", "spike", "perplexity")],
    ]
    points = base.mark_point(filled=True, size=80, opacity=1).encode(tooltip=tips)
    names = base.mark_text(align="left", dx=9).encode(alt.Text("model:N"))
    return Figure(
        name="compare_plane",
        title="Spikes against sinks",
        chart=layered(points, names),
        rows=table(rows),
        caption="One point a model: up, spikes; right, sinks.",
        conditions=_shapes(named),
        alternative=f"Scatter of {len(named)} models by sink ratio and largest magnitude over the median.",
    )


def _over_steps(named: Named, steps: list[int]) -> Figure:
    rows: Rows = []
    for step, (name, record) in sorted(zip(steps, named, strict=True), key=lambda pair: pair[0]):
        summary = record.summary
        rows += [
            {"step": step, "model": name, "what": "max / median", "value": summary.max_over_median},
            {"step": step, "model": name, "what": "perplexity", "value": summary.perplexity},
            {"step": step, "model": name, "what": "sink ratio, %", "value": 100 * summary.sink_ratio},
        ]
    names = ["max / median", "perplexity", "sink ratio, %"]
    y = alt.Y("value:Q", title="value", scale=alt.Scale(type="symlog", constant=1))
    chart = lines("what", names, alt.X("step:Q", title="training step", axis=alt.Axis(grid=False)), y,
                   ["model:N", "step:Q", "what:N", alt.Tooltip("value:Q", format=",.4~g")])  # fmt: skip
    return Figure(
        name="compare_steps",
        title="One model over its training",
        chart=chart,
        rows=table(rows),
        caption=f"Scans of {len(named)} checkpoints, {min(steps):,} to {max(steps):,} steps.",
        conditions=_shapes(named),
        alternative="Line chart of spike, perplexity and sink ratio over training steps.",
    )


def _shapes(named: Named) -> str:
    shapes = list(dict.fromkeys(shape(record.provenance) for _, record in named))
    return f"{'; '.join(shapes)}."
