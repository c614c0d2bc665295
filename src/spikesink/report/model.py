"""What the records of one model say: the answer, the figures of merit, every part, what was not measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from spikesink import measures
from spikesink.records import Anatomy, NotApplicable, Provenance
from spikesink.records.base import is_rows
from spikesink.records.interventions import Interventions
from spikesink.report.answer import answer
from spikesink.report.command import command
from spikesink.report.conditions import condition_table, line, mind, sentence
from spikesink.report.document import Document, Merit, Part, Table, Unmeasured
from spikesink.report.dose import dose_part
from spikesink.report.format import counted, number
from spikesink.report.formats import formats_part
from spikesink.report.heads import head_details
from spikesink.report.interventions import interventions_part
from spikesink.report.kv_cache import kv_cache_part
from spikesink.report.lifecycle import lifecycle_part, spikes_part
from spikesink.report.next_step import next_step
from spikesink.report.quantisation import quantisation_part
from spikesink.report.remedies import remedies_part
from spikesink.report.runs import Model
from spikesink.report.sinks import sinks_part
from spikesink.report.training import training_part

HIDDEN = ("applicable", "reason")
ROWS = 200
"""Rows of a table that are shown; the record has all."""
ITEMS = 12
"""Values of a plain list that are shown."""


def fields_part(name: str, title: str, content: BaseModel | Mapping[str, Any]) -> Part:
    """Every field of a section, typed or as it was read from a file."""
    values = content.model_dump(mode="json") if isinstance(content, BaseModel) else dict(content)
    values = {key: value for key, value in values.items() if key not in HIDDEN}
    tables = {key: value for key, value in values.items() if is_rows(value)}
    return Part(
        name,
        title,
        merits=[Merit(_words(key), text(value)) for key, value in values.items() if key not in tables],
        tables=[_table(_words(key), rows) for key, rows in tables.items()],
    )


def _words(key: str) -> str:
    return key.replace("_", " ")


def _table(caption: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    note = f"The first {ROWS} of {len(rows):,} rows; the record has all." if len(rows) > ROWS else ""
    cells = [[text(row.get(key)) for key in columns] for row in rows[:ROWS]]
    return Table(caption[:1].upper() + caption[1:], [_words(key) for key in columns], cells, note=note, most=8)


def text(value: Any) -> str:
    """Any value of a JSON record as a cell."""
    if value is None or isinstance(value, float):
        return number(value, 4)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return "; ".join(f"{_words(str(key))} {text(item)}" for key, item in value.items())
    if isinstance(value, list):
        shown = ", ".join(text(item) for item in value[:ITEMS])
        return f"{shown} … {len(value)} in all" if len(value) > ITEMS else shown or number(None)
    return str(value)


def model_document(model: Model) -> Document:
    """Everything that the records of one model hold."""
    records: list[Any] = [source.record for source in model.sources]
    return Document(
        kind="model",
        title=model.name,
        lead=sentence(records[0].provenance),
        statements=answer(model) + mind(records),
        merits=_merits(model),
        sections=[section for section in _sections(model) if not section.empty],
        unmeasured=_unmeasured(model),
        heads=head_details(model.anatomy) if model.anatomy is not None else None,
        conditions=[(record.file, condition_table(record)) for record in records],
        condition=line(records[0]),
        next=next_step(*records),
    )


def _merits(model: Model) -> list[Merit]:
    merits: list[Merit] = []
    if model.anatomy is not None:
        summary = model.anatomy.summary
        where = f"channel {summary.spike_channel}, block {model.anatomy.placed(summary.spike_block)}"
        massive = "massive" if model.anatomy.spikes.massive_count else "outlier by our rule only"
        verdict = massive if summary.has_spikes else "no spikes"
        heads = f"{summary.sink_head_count:,} of {counted(summary.head_count, 'head')}"
        merits += [
            Merit("largest magnitude", summary.spike, note=where),
            Merit("over the median", summary.max_over_median, "×", note=verdict),
            Merit("sink ratio", summary.sink_ratio, "%", note=heads),
            Merit("perplexity", summary.perplexity, note="on these tokens", digits=4),
        ]
    if model.interventions is not None:
        merits += _intervention_merits(model.interventions)
    if model.training is not None:
        merits.append(Merit("held-out loss", model.training.held_out_loss_nats, note="nats, end of training", digits=4))
    return merits


def _intervention_merits(record: Interventions) -> list[Merit]:
    merits = []
    zeroed = next((row for row in record.interventions if row.applicable and row.name == "zero_spikes"), None)
    if zeroed is not None and zeroed.perplexity is not None:
        merits.append(Merit("perplexity, spikes zeroed", zeroed.perplexity.value, note="see the interventions"))
    if record.kv_cache.applicable and record.kv_cache.keep is not None:
        merits.append(Merit("keep in the KV cache", str(record.kv_cache.keep), note="first tokens"))
    return merits


def _sections(model: Model) -> list[Part]:
    sections: list[Part] = []
    if model.anatomy is not None:
        record = model.anatomy
        sections += [lifecycle_part(record), sinks_part(record), spikes_part(record)]
        sections += [_measured(record, name, section) for name, section in _further(record).items()]
        _under(record.provenance, sections)
    if model.interventions is not None:
        record = model.interventions
        parts = [interventions_part(record)] if record.has_changes else []
        parts += [dose_part(record)] if record.dose else []
        parts += [quantisation_part(record)] if record.quantisation.applicable else []
        parts += [remedies_part(record)] if record.remedies.applicable else []
        parts += [formats_part(record)] if record.formats.applicable else []
        parts += [kv_cache_part(record)] if record.kv_cache.applicable else []
        _under(record.provenance, parts)
        sections += parts
    if model.training is not None:
        sections.append(training_part(model.training))
    return sections


def _under(provenance: Provenance, parts: Sequence[Part]) -> None:
    """Let every chart say under which conditions it was measured, unless it says so itself."""
    for part in parts:
        part.figures = [
            replace(figure, conditions=figure.conditions or sentence(provenance)) for figure in part.figures
        ]


def _further(record: Anatomy) -> dict[str, Any]:
    """Sections of further measures, typed or as read from a file, in the registry's order."""
    sections = {
        name: value for name, value in (record.model_extra or {}).items() if isinstance(value, BaseModel | dict)
    }
    order = {name: index for index, name in enumerate(measures.measures())}
    return dict(sorted(sections.items(), key=lambda pair: order.get(pair[0], len(order))))


def _measured(record: Anatomy, name: str, section: Any) -> Part:
    """The part of one measure; where it has none of its own, all of its fields."""
    known = measures.measures().get(name)
    title = name.replace("_", " ").capitalize()
    if isinstance(section, NotApplicable):
        return Part(name, title, note=f"Does not apply to this model: {section.reason}.")
    if known is None or known.part is None:
        return fields_part(name, title, section)
    return measures.resolve(known.part)(record, section)


def _unmeasured(model: Model) -> list[Unmeasured]:
    """What is missing, one line with its command for each kind."""
    rows: list[Unmeasured] = []
    if model.anatomy is not None:
        known, measured = measures.measures(), _further(model.anatomy)
        missing = [name for name in known if name not in measured]
        if missing:
            names = "all" if len(missing) == len(known) else ",".join(missing)
            rows.append(Unmeasured(", ".join(missing), command("scan", model.anatomy.provenance, "--measure", names)))
    return rows
