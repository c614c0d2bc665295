"""What a graft says: what was replaced, what it costs beside its control, and whether spikes and sinks came back."""

from spikesink.records.intervals import Estimate
from spikesink.records.training import SPIKE_RATIO_MIN, GraftPoint, GraftRecord
from spikesink.report.conditions import condition_table, line
from spikesink.report.document import Document, Merit, Part, Statement, Table
from spikesink.report.drawing import Figure, Rows
from spikesink.report.format import NONE, interval, listed, number, percent, quantity, signed
from spikesink.report.next_step import next_step
from spikesink.report.training import CURVES, curve_figure

GONE_SHARE = 1 / 3
"""A sink ratio below this share of the control's is called gone, one above its complement kept."""
NAMES = {
    "original": "original",
    "grafted": "grafted, not trained",
    "healed": "healed",
    "control": "control",
}


def graft_document(record: GraftRecord) -> Document:
    """Of one graft."""
    replaced = listed(
        [f"{path} {before or NONE} → {after or NONE}" for path, (before, after) in record.replaced.items()]
    )
    failures = " ".join(f"{NAMES[name]}: {reason}" for name, reason in record.failed.items())
    training = f"{record.steps:,} steps, {record.tokens:,} tokens" if record.steps else "no training"
    return Document(
        kind="graft",
        title=f"{record.model}: {replaced}",
        lead=f"{training}; {record.new_parameters:,} new parameters of {record.parameters:,}",
        statements=_statements(record),
        merits=_merits(record),
        sections=[
            Part("models", "Before and after", tables=[_points(record)], note=failures),
            Part("curves", "While it healed", figures=graft_figures(record)),
        ],
        conditions=[(record.file, condition_table(record))],
        condition=line(record),
        next=next_step(record),
    )


def spike_words(record: GraftRecord) -> str | None:
    """Whether the first token still stands out; None where one of the two was not measured."""
    after, original = record.points.get("healed"), record.points.get("original")
    if after is None or original is None:
        return None
    before = original.norm_ratio
    rule = f"the first token's residual is {number(after.norm_ratio)} × the median token's (was {number(before)})"
    if before < SPIKE_RATIO_MIN:
        return f"There was no spike to lose: {rule}."
    return f"The spike is {'gone' if after.norm_ratio < SPIKE_RATIO_MIN else 'still there'}: {rule}."


def sink_words(record: GraftRecord) -> str | None:
    """Whether the sinks are still there, against the control's; None without both."""
    after, control = record.points.get("healed"), record.points.get("control")
    if after is None or control is None:
        return None
    share = after.sink_ratio / control.sink_ratio if control.sink_ratio > 0 else None
    rule = f"sink ratio {percent(after.sink_ratio)}, the control's {percent(control.sink_ratio)}"
    if share is None:
        return f"The control has no sinks to compare with: {rule}."
    word = "gone" if share < GONE_SHARE else "kept" if share > 1 - GONE_SHARE else "fewer"
    return f"The sinks are {word}: {rule}."


def cost_words(cost: Estimate) -> str:
    """What the replacement costs beside the same training without it."""
    text = quantity(cost.value, "nats", cost.low, cost.high)
    if cost.low > 0:
        return f"It costs {text} of held-out loss beside the control."
    if cost.high < 0:
        gain = quantity(-cost.value, "nats", -cost.high, -cost.low).replace("+", "")
        return f"It gains {gain} of held-out loss beside the control."
    return f"No cost can be told beside the control: {text}."


def _statements(record: GraftRecord) -> list[Statement]:
    points = [words for words in (spike_words(record), sink_words(record)) if words is not None]
    if record.cost_nats is not None:
        points.append(cost_words(record.cost_nats))
    if record.move is not None:
        kept = percent(record.move.top1_kept)
        points.append(
            f"Before training the graft moved the function by {number(record.move.kl_nats)} nats (KL); {kept} of the "
            "likeliest tokens stayed."
        )
    family = record.exported_as
    plain = f"Other programs load the result as a plain {family}."
    points.append(plain if family else "No plain family has these choices: the result is spikesink's own decoder.")
    rule = (
        f"A first token of {number(SPIKE_RATIO_MIN)} × the median or more is a spike token; sinks are gone below a "
        "third of the control's sink ratio, kept above two thirds."
    )
    return [Statement("What came back", rule, tuple(points), measured="healed" in record.points)]


def _merits(record: GraftRecord) -> list[Merit]:
    merits = []
    if record.cost_nats is not None:
        cost = record.cost_nats
        merits.append(Merit("loss beside the control", cost.value, "nats", cost.low, cost.high))
    last = record.points.get("healed") or record.points.get("grafted")
    if last is not None:
        merits.append(Merit("perplexity", last.perplexity.value, "", last.perplexity.low, last.perplexity.high))
        merits.append(Merit("first token's norm", last.norm_ratio, "×"))
        merits.append(Merit("sink ratio", last.sink_ratio, "%"))
    return merits


def _points(record: GraftRecord) -> Table:
    columns = ("model", "perplexity", "spike", "max/median", "norm ratio", "sink ratio", "first key", "int8", "fp8")
    rows = [[NAMES[name], *_cells(point)] for name, point in record.points.items()]
    return Table(
        "Each on the same held-out text",
        columns,
        rows,
        brief=("model", "perplexity", "norm ratio", "sink ratio", "int8"),
        note="Norm ratio: first token's residual over the median token's; int8: nats that rounding the input of every "
        "linear map adds, one scale per tensor.",
        aside="First key: attention to the first key, mean over heads; fp8: as int8.",
    )


def _cells(point: GraftPoint) -> list[str]:
    return [
        interval(point.perplexity),
        number(point.spike),
        number(point.max_over_median),
        number(point.norm_ratio),
        percent(point.sink_ratio),
        number(point.first_key_importance),
        signed(point.int8_nats.value),
        signed(point.fp8_nats.value),
    ]


def graft_figures(record: GraftRecord) -> list[Figure]:
    """Learning curves of the healed model and its control."""
    return [figure for name in CURVES if (figure := _curve(record, name)) is not None]


def _curve(record: GraftRecord, name: str) -> Figure | None:
    arrays = record.arrays
    points: list[tuple[str, Rows]] = [
        (run, [
            {"step": int(step), "value": float(value)}
            for step, value in zip(arrays[f"{run}.{name}.step"], arrays[f"{run}.{name}"], strict=True)
        ])
        for run in ("healed", "control") if f"{run}.{name}" in arrays
    ]  # fmt: skip
    conditions = f"{record.model}, {record.tokens:,} tokens"
    return curve_figure("graft", name, points, key=name != "loss", conditions=conditions, steps=record.steps)
