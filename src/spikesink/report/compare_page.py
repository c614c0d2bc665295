"""Several models, or one over training steps, side by side."""

from collections.abc import Sequence

from spikesink.report import tables
from spikesink.report.answer import Statement
from spikesink.report.charts.compare import compare_figures, steps_of
from spikesink.report.charts.training import training_figures
from spikesink.report.model_page import provenance
from spikesink.report.runs import Model, labels
from spikesink.report.sections import Page, Section
from spikesink.report.words import blocks, counted, interval, listed, number, percent


def compare_page(models: Sequence[Model]) -> Page:
    """A column a model: the numbers, the life cycles and the sinks over each other, the training curves."""
    names = labels(models)
    named = list(zip(names, models, strict=True))
    anatomies = [(name, model.anatomy) for name, model in named if model.anatomy is not None]
    trainings = [(name, model.training) for name, model in named if model.training is not None]
    steps = steps_of([name for name, _ in anatomies])
    sections = [
        Section("numbers", "The numbers", "", tables=[_table(named)]),
        Section(
            "charts",
            "Over training steps" if steps else "Side by side",
            "Depth is the block over the number of blocks, so that models of different depth lie over each other.",
            compare_figures(anatomies, steps),
        ),
        Section("training", "While they were trained", "", training_figures(trainings) if trainings else []),
    ]
    return Page(
        kind="comparison",
        title=listed(names, 4),
        lead=f"{len(models)} records side by side. Compare only what was measured under the same conditions.",
        statements=_statements(named),
        sections=[section for section in sections if not section.empty],
        conditions=[
            (f"{name}: {source.record.file}", tables.provenance_table(provenance(source.record)))
            for name, model in named
            for source in model.sources
        ],
    )


def _statements(named: Sequence[tuple[str, Model]]) -> list[Statement]:
    anatomies = [(name, model.anatomy) for name, model in named if model.anatomy is not None]
    with_spikes = [name for name, record in anatomies if record.summary.has_spikes]
    with_sinks = [name for name, record in anatomies if record.summary.has_sinks]
    statements = []
    if anatomies:
        n = len(anatomies)
        statements = [
            Statement("Spikes", f"{len(with_spikes)} of {counted(n, 'scan')} find spikes{_which(with_spikes, n)}."),
            Statement("Sinks", f"{len(with_sinks)} of {counted(n, 'scan')} find sinks{_which(with_sinks, n)}."),
        ]
    differing = _differing(named)
    if differing:
        text = f"These conditions differ, so numbers may differ for that reason alone: {listed(differing)}."
        statements.append(Statement("Mind", text))
    return statements


def _which(names: list[str], of: int) -> str:
    return f": {listed(names)}" if 0 < len(names) < of else ""


CONDITIONS = {"source_sha256": "text", "sequences": "sequences", "seq_len": "sequence length", "bos_added": "BOS",
              "chat_template": "chat template", "ids_sha256": "token ids"}  # fmt: skip


def _differing(named: Sequence[tuple[str, Model]]) -> list[str]:
    """Conditions of the scans that are not the same everywhere."""
    tokens = [model.anatomy.provenance.tokens for _, model in named if model.anatomy is not None]
    settings = [str(model.anatomy.provenance.settings.get("sinks")) for _, model in named if model.anatomy is not None]
    found = [label for key, label in CONDITIONS.items() if len({str(content.get(key)) for content in tokens}) > 1]
    return [*found, *(["sink criteria"] if len(set(settings)) > 1 else [])]


def _table(named: Sequence[tuple[str, Model]]) -> tables.Table:
    rows = [[label, *[_cell(model, row) for _, model in named]] for label, row in _ROWS]
    rows = [row for row in rows if any(cell != "–" for cell in row[1:])]
    return tables.Table("Side by side", ("", *[name for name, _ in named]), rows)


def _cell(model: Model, row: str) -> str:
    anatomy, interventions, training = model.anatomy, model.interventions, model.training
    cells: dict[str, str] = {}
    if anatomy is not None:
        summary = anatomy.summary
        cells |= {
            "spikes": "yes" if summary.has_spikes else "no", "spike": number(summary.spike),
            "over": number(summary.max_over_median), "channels": listed(summary.spike_channels, 4) or "–",
            "up": blocks(summary.step_up_blocks), "down": blocks(summary.step_down_blocks),
            "sinks": percent(summary.sink_ratio), "gu": percent(summary.sink_ratio_gu2025),
            "first": number(anatomy.sinks.first_key_importance), "perplexity": number(summary.perplexity),
        }  # fmt: skip
    if interventions is not None:
        cells["verdict"] = interventions.dissociation.verdict
        zeroed = next((item for item in interventions.interventions if item.name == "zero_spikes"), None)
        if zeroed is not None and zeroed.loss_difference_nats is not None:
            cost = zeroed.loss_difference_nats
            cells["zero"] = interval(cost.value, cost.low, cost.high)
        cells["keep"] = number(interventions.kv_cache.keep)
    if training is not None:
        cells["held"] = f"{training.held_out_loss_nats:.3f}"
    return cells.get(row, "–")


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
    ("first tokens to keep", "keep"),
    ("held-out loss, nats", "held"),
)
