"""What a survey says: every cell in one table, families and arrangements side by side, emergence, the paper's check."""

from collections.abc import Sequence
from statistics import median

from spikesink.records.survey import Move, SurveyRecord, SurveyRow, moves
from spikesink.report.atlas_charts import atlas_figures, emergence_figures, trained
from spikesink.report.conditions import condition_table
from spikesink.report.document import Document, Merit, Part, Statement, Table
from spikesink.report.format import NONE, counted, interval, listed, number, percent, quantity
from spikesink.report.next_step import next_step

COLUMNS = ("model", "conditions", "max / median", "spike", "sink ratio", "perplexity", "family", "norms", "parameters",
           "block", "channels", "made by", "taken by", "sink heads", "sink positions", "zeroing, nats",
           "freezing, nats", "int8, nats", "fp8, nats")  # fmt: skip
BRIEF = ("model", "max / median", "spike", "sink ratio", "perplexity")
WORDS = 2
CHOICES = ("conditions", "family", "norms")
TERMINAL_ROWS = 24
Bare = Sequence[float | str | None]


def atlas_document(record: SurveyRecord) -> Document:
    """Everything that a survey measured."""
    rows = record.finished()
    left = [row for row in record.rows if row.status != "finished"]
    models = {row.model for row in record.rows}
    sections = [
        Part("cells", "Every cell", tables=[_cells(rows)] if rows else []),
        Part(
            "plane",
            "Spikes against sinks",
            "Up: a larger spike; right: more heads that sink. Colour is where the norms stand, the choice that the "
            "study changes.",
            figures=atlas_figures(rows),
        ),
        Part("families", "Families side by side", tables=[_families(rows)] if rows else []),
        Part(
            "emergence",
            "Emergence over training",
            "What a model has after each of its checkpoints; a thing has appeared where it is there and stays.",
            figures=emergence_figures(rows),
            tables=_orders(rows),
        ),
        Part("paper", "Beside the papers", tables=[_paper(record)] if record.paper else []),
        Part("left", "Refused and failed", tables=[_left(left)] if left else []),
    ]
    without = f"; {counted(len(left), 'cell')} without a result" if left else ""
    return Document(
        kind="survey",
        title=f"Atlas of {counted(len(models), 'model')}",
        lead=f"{counted(len(record.rows), 'cell')}: {listed(sorted(models), 6)}{without}.",
        statements=_statements(rows, left),
        merits=[
            Merit("models", str(len(models))),
            Merit("cells measured", str(len(rows)), note=f"of {len(record.rows)}"),
            Merit("with spikes", percent(_share(rows, "has_spikes")), note="of the cells"),
            Merit("with sinks", percent(_share(rows, "has_sinks")), note="of the cells"),
        ],
        sections=[section for section in sections if not section.empty],
        conditions=[("survey", condition_table(record))],
        next=next_step(record),
        command="spikesink report SURVEY",
    )


def _share(rows: Sequence[SurveyRow], name: str) -> float | None:
    return sum(bool(getattr(row, name)) for row in rows) / len(rows) if rows else None


def _statements(rows: Sequence[SurveyRow], left: Sequence[SurveyRow]) -> list[Statement]:
    if not rows:
        return [Statement("Nothing was measured", f"{counted(len(left), 'cell')} without a result; see below.")]
    statements = []
    for name, what in (("has_spikes", "Spikes"), ("has_sinks", "Sinks")):
        groups = _grouped(rows, "arrangement")
        parts = [f"{group}: {sum(bool(getattr(row, name)) for row in of)} of {len(of)}" for group, of in groups.items()]
        total = sum(bool(getattr(row, name)) for row in rows)
        statements.append(Statement(what, f"{total} of {counted(len(rows), 'cell')}. By norms: {'; '.join(parts)}."))
    sinks_alone = sorted({row.label for row in rows if row.has_sinks and not row.has_spikes})
    spikes_alone = sorted({row.label for row in rows if row.has_spikes and not row.has_sinks})
    apart = [f"{what} in {listed(names, 5)}" for what, names in (
        ("sinks without spikes", sinks_alone), ("spikes without sinks", spikes_alone)) if names]  # fmt: skip
    if apart:
        statements.append(Statement("Apart", f"{'; '.join(apart)}."))
    return statements


def _grouped(rows: Sequence[SurveyRow], name: str) -> dict[str, list[SurveyRow]]:
    groups: dict[str, list[SurveyRow]] = {}
    for row in rows:
        groups.setdefault(str(getattr(row, name)), []).append(row)
    return dict(sorted(groups.items()))


def _cells(rows: Sequence[SurveyRow]) -> Table:
    pairs = [_cell(row) for row in rows]
    return Table(
        "Every cell",
        COLUMNS,
        [shown for shown, _ in pairs],
        words=WORDS,
        sort=[keys for _, keys in pairs],
        choices=CHOICES,
        brief=BRIEF if len({row.condition for row in rows}) == 1 else (BRIEF[0], "conditions", *BRIEF[1:]),
        most=TERMINAL_ROWS,
        curves=[row.life_cycle for row in rows],
        curve="life cycle",
        note="Intervals are over sequences. Blocks count from 1, channels and positions from 0. Where BOS alone "
        "spikes, one constant in its place costs nothing whatever the model.",
        aside="Life cycle: the largest magnitude after each block, logarithmic, each scaled to itself.",
    )


def _cell(row: SurveyRow) -> tuple[list[str], Bare]:
    """A row of the table as it is shown, and what it is sorted by."""
    bounded = [row.zero_cost_nats, row.freeze_cost_nats, row.int8_cost_nats, row.fp8_cost_nats]
    ratio = row.sink_ratio
    sinks = NONE if ratio is None else quantity(ratio.value, "%", ratio.low, ratio.high)
    size = NONE if row.parameters is None else number(row.parameters)
    perplexity = None if row.perplexity is None else row.perplexity.value
    columns: list[tuple[str, float | str | None]] = [
        (row.label, row.label), (row.condition, row.condition), (number(row.max_over_median), row.max_over_median),
        (number(row.spike) + ("" if row.has_spikes else " (none)"), row.spike),
        (sinks, ratio.value if ratio else None), (interval(row.perplexity), perplexity),
        (row.family or NONE, row.family), (row.arrangement or NONE, row.arrangement), (size, row.parameters),
        (_ints([row.spike_block]), row.spike_block), (_ints(row.spike_channels), len(row.spike_channels)),
        (_ints(row.step_up_blocks), _first(row.step_up_blocks)),
        (_ints(row.step_down_blocks), _first(row.step_down_blocks)),
        (f"{row.sink_heads} of {row.heads}", row.sink_heads), (_ints(row.sink_positions), _first(row.sink_positions)),
        *[(NONE if cost is None else quantity(cost.value, "nats", cost.low, cost.high).removesuffix(" nats"),
           None if cost is None else cost.value) for cost in bounded],
    ]  # fmt: skip
    return [shown for shown, _ in columns], [key for _, key in columns]


def _ints(numbers: Sequence[int | None]) -> str:
    return listed([each for each in numbers if each is not None], 3) or NONE


def _first(numbers: Sequence[int]) -> int | None:
    return numbers[0] if numbers else None


def _families(rows: Sequence[SurveyRow]) -> Table:
    body = []
    for family, of in _grouped(rows, "family").items():
        depths = [row.step_up_blocks[0] / row.blocks for row in of if row.step_up_blocks and row.blocks]
        body.append([
            family, listed(sorted({row.arrangement or NONE for row in of}), 3), str(len({row.label for row in of})),
            _range([row.parameters for row in of]), f"{sum(bool(row.has_spikes) for row in of)} of {len(of)}",
            _range([row.max_over_median for row in of]), percent(median(depths)) if depths else NONE,
            f"{sum(bool(row.has_sinks) for row in of)} of {len(of)}",
            _range([100 * row.sink_ratio.value for row in of if row.sink_ratio]) + " %",
        ])  # fmt: skip
    columns = ("family", "norms", "revisions", "parameters", "cells with spikes", "max / median", "depth of step-up",
               "cells with sinks", "sink ratio")  # fmt: skip
    note = "Ranges over cells; the depth of the first step-up block is its number over all blocks, the median of cells."
    return Table("Families", columns, body, words=2, note=note, brief=("family", "max / median", "sink ratio"))


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    ends = list(dict.fromkeys(number(value) for value in (min(known), max(known)))) if known else [NONE]
    return " to ".join(ends)


APPEARS = (("spikes", lambda row: row.has_spikes), ("sinks", lambda row: row.has_sinks),
           ("a step-up block", lambda row: bool(row.step_up_blocks)),
           ("a step-down block", lambda row: bool(row.step_down_blocks)))  # fmt: skip


def _orders(rows: Sequence[SurveyRow]) -> list[Table]:
    """When what appeared in each model that was measured after several steps."""
    body = []
    for (model, condition), of in trained(rows).items():
        appeared: dict[str, SurveyRow | None] = {}
        for what, there in APPEARS:
            last = next((index for index in reversed(range(len(of))) if not there(of[index])), -1)
            appeared[what] = of[last + 1] if last + 1 < len(of) else None
        steps = sorted({row.step or 0 for row in appeared.values() if row is not None})
        together = [[what for what, row in appeared.items() if row is not None and row.step == step] for step in steps]
        cells = [NONE if row is None else f"step {row.step:,}{_tokens(row)}" for row in appeared.values()]
        body.append([model, condition, *cells, ", then ".join(listed(whats) for whats in together) or NONE])
    columns = ("model", "conditions", *(what for what, _ in APPEARS), "order")
    brief = ("model", "order")
    return [Table("Order of appearance", columns, body, words=len(columns), brief=brief)] if body else []


def _tokens(row: SurveyRow) -> str:
    return f" ({number(row.tokens_trained)} tokens)" if row.tokens_trained else ""


def _paper(record: SurveyRecord) -> Table:
    rows = [[line.model, line.of, line.what, line.paper, line.ours, line.verdict, line.source] for line in record.paper]
    differs = sum(line.verdict == "differs" for line in record.paper)
    note = (
        "A model is known by its config, which fine-tunes share. Vocabulary shares agree within 0.5 percentage points."
    )
    return Table(
        f"Published figures: {len(rows) - differs} agreed, {differs} {'differs' if differs == 1 else 'differ'}",
        ("model", "config of", "what", "published", "here", "verdict", "source"),
        rows,
        styles=["" if line.verdict == "agreed" else "strong" for line in record.paper],
        words=7,
        note=note,
        brief=("model", "what", "published", "here", "verdict"),
    )


def _left(rows: Sequence[SurveyRow]) -> Table:
    body = [[row.label, row.condition, row.status, row.error or ""] for row in rows]
    return Table("Cells without a result", ("model", "condition", "status", "reason"), body, words=4,
                 brief=("model", "status", "reason"), most=TERMINAL_ROWS)  # fmt: skip


def moves_document(before: SurveyRecord, after: SurveyRecord) -> Document:
    """What moved from one survey to another."""
    moved = moves(before, after)
    shared = {row.key for row in before.rows} & {row.key for row in after.rows}
    models = list(dict.fromkeys(move.model for move in moved))
    text = (
        f"{counted(len(moved), 'figure')} of {counted(len(shared), 'cell')} that both have, or of cells that one lacks"
    )
    return Document(
        kind="survey",
        title="What moved between two surveys",
        lead="A figure moved where neither value lies in the other's interval; a finding, where it is another.",
        statements=[Statement("Moved", f"{text}{f': {listed(models)}' if models else ''}.")],
        sections=[Part("moved", "What moved", tables=[_moved(moved)])] if moved else [],
        conditions=[("first", condition_table(before)), ("second", condition_table(after))],
    )


def _moved(moved: Sequence[Move]) -> Table:
    rows = [[move.model, move.condition, move.what.replace("_", " "), move.before, move.after] for move in moved]
    return Table("What moved", ("model", "condition", "what", "before", "after"), rows, words=5,
                 brief=("model", "what", "before", "after"))  # fmt: skip
