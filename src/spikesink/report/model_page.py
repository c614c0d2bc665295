"""The page of one model: the answer, then every measure, then the conditions."""

from typing import Any

from spikesink.records import Anatomy, NotApplicable, TrainingRun
from spikesink.records.interventions import Interventions
from spikesink.report import tables
from spikesink.report.answer import answer
from spikesink.report.charts import (
    cache_figures,
    head_importance,
    intervention_figures,
    lifecycle_figures,
    quantisation_figures,
    section_figures,
    sink_map,
)  # fmt: skip
from spikesink.report.charts.geometry import head_plane
from spikesink.report.charts.training import training_figures
from spikesink.report.conditions import sentence
from spikesink.report.head_details import head_details
from spikesink.report.runs import Model
from spikesink.report.sections import Page, Section, Tile
from spikesink.report.words import number, percent

MEASURES = {
    "amplifier": (
        "The amplifier",
        "A gated FFN whose gate is near the identity is a quadratic form in each output channel, "
        "h̃ᵀU_k h̃. A channel with an outlying ‖U_k‖ and one dominant eigenvalue turns one direction into a spike.",
    ),
    "trigger": (
        "Which tokens trigger it",
        "The first token attends only to itself, so attention is one fixed linear map there, whatever the token is.",
    ),
    "normalisation": (
        "What normalisation makes of it",
        "Behind the norm a spike is bounded and sparse: the token becomes nearly the same vector everywhere, "
        "an implicit parameter.",
    ),
    "geometry": (
        "Why queries find the sink",
        "A head sinks when its queries lie closer to the sink's key than to the others. Before the rotary embedding.",
    ),
    "heads": (
        "What the sink does to its head",
        "The mass on the sink turns the head's output down; what is left decides where the head looks.",
    ),
    "properties": ("The five properties", "Whether what was found is what the literature calls massive activations."),
}


def model_page(model: Model) -> Page:
    """Everything that the records of one model hold."""
    sections: list[Section] = []
    if model.anatomy is not None:
        sections += _anatomy_sections(model)
    if model.interventions is not None:
        sections += _intervention_sections(model.interventions)
    if model.training is not None:
        sections.append(_training_section(model.training))
    return Page(
        kind="model",
        title=model.name,
        lead=_lead(model),
        statements=answer(model),
        tiles=_tiles(model),
        sections=[section for section in sections if not section.empty],
        heads=head_details(model) if model.anatomy is not None else None,
        conditions=[
            (source.record.file, tables.provenance_table(provenance(source.record))) for source in model.sources
        ],
    )


def provenance(record: Any) -> dict[str, Any]:
    """All conditions of a record, with when and how long."""
    return {**record.provenance.model_dump(mode="json"), "timing": record.timing.model_dump(mode="json")}


def _lead(model: Model) -> str:
    records = [source.record for source in model.sources]
    return " ".join(sentence(record.provenance) for record in records[:1])  # type: ignore[attr-defined]


def _tiles(model: Model) -> list[Tile]:
    tiles = []
    if model.anatomy is not None:
        summary = model.anatomy.summary
        tiles += [
            Tile(
                "largest magnitude",
                number(summary.spike),
                f"channel {summary.spike_channel}, block {summary.spike_block}",
            ),
            Tile(
                "over the median",
                f"{number(summary.max_over_median)} ×",
                "has spikes" if summary.has_spikes else "no spikes",
            ),
            Tile(
                "sink ratio",
                percent(summary.sink_ratio),
                f"{summary.sink_head_count:,} of {summary.head_count:,} heads",
            ),
            Tile("perplexity", number(summary.perplexity), "on these tokens"),
        ]
    if model.interventions is not None:
        tiles += _intervention_tiles(model.interventions)
    if model.training is not None:
        tiles.append(Tile("held-out loss", f"{model.training.held_out_loss_nats:.3f}", "nats, end of training"))
    return tiles


def _intervention_tiles(record: Interventions) -> list[Tile]:
    rows = {row.name: row for row in record.interventions if row.applicable}
    tiles = []
    zeroed = rows.get("zero_spikes")
    if zeroed is not None and zeroed.perplexity is not None:
        tiles.append(Tile("perplexity, spikes zeroed", number(zeroed.perplexity.value), "see the interventions"))
    if record.kv_cache.applicable and record.kv_cache.keep is not None:
        tiles.append(Tile("keep in the KV cache", str(record.kv_cache.keep), "first tokens"))
    return tiles


def _anatomy_sections(model: Model) -> list[Section]:
    record = model.anatomy
    assert record is not None
    lifecycle = Section(
        "lifecycle",
        "Life cycle of the largest activations",
        "Each block adds its write to the residual stream: few blocks make a spike, the ones between carry it along, "
        "few take it away.",
        lifecycle_figures(record),
    )
    sinks = Section(
        "sinks",
        "Where attention sinks",
        "Click a cell, or choose a head with the fields below the map, to see what is known of that head.",
        [sink_map(record), head_importance(record), *head_plane(record)],
        part="heads",
        content=sorted({head.block for head in record.sinks.heads}),
    )
    tokens = Section(
        "tokens",
        "The tokens that spike",
        "Darker means larger; the number behind a token is the largest magnitude of its state.",
        part="tokens",
        content=_token_lines(record),
        missing="" if record.summary.has_spikes else "No token reaches the rule for spikes.",
    )
    return [lifecycle, sinks, tokens, *[_measure(record, name) for name in MEASURES]]


def _token_lines(record: Anatomy) -> list[dict[str, Any]]:
    """Spike tokens with the text around them, the largest first, and how dark they are from 1 to 5."""
    top = max((token.value for token in record.summary.spike_tokens), default=1.0)
    return [
        {
            "place": f"sequence {token.sequence}, position {token.position}",
            "before": tables.printable(token.before or ""),
            "text": tables.shown(token.text) or "(empty)",
            "after": tables.printable(token.after or ""),
            "value": number(token.value),
            "shade": max(1, min(5, round(5 * token.value / top))),
        }
        for token in record.summary.spike_tokens
    ]  # fmt: skip


def _measure(record: Anatomy, name: str) -> Section:
    title, intro = MEASURES[name]
    section = (record.model_extra or {}).get(name)
    if section is None:
        missing = f"Not measured; spikesink scan --measure {name} adds it."
        return Section(name, title, intro, missing=missing)
    if isinstance(section, NotApplicable):
        return Section(name, title, intro, missing=f"Does not apply to this model: {section.reason}.")
    found: dict[str, list[tables.Table | None]] = {
        "amplifier": [tables.steps_table(record)],
        "trigger": [tables.self_sinking_table(record), tables.exceptions_table(record)],
        "properties": [_known(tables.properties_table(record)), tables.overlap_table(record)],
    }
    shown = [table for table in found.get(name, []) if table is not None]
    return Section(name, title, intro, section_figures(record, name), shown)


def _known(table: tables.Table | str | None) -> tables.Table | None:
    return table if isinstance(table, tables.Table) else None


def _intervention_sections(record: Interventions) -> list[Section]:
    tokens = tables.spiking_tokens_table(record)
    quantisation, cache = record.quantisation, record.kv_cache
    return [
        Section(
            "interventions",
            "Remove one, keep the rest",
            "What the model loses when spikes or sinks go, with a random control of the same size for each.",
            intervention_figures(record),
            [tables.answers_table(record), tables.interventions_table(record)],
        ),
        Section(
            "quantisation",
            "Int8: what breaks, and what mends it",
            "With one scale a tensor, one spike sets the scale, and what is ordinary is rounded away.",
            quantisation_figures(record),
            [tokens] if tokens and quantisation.applicable else [],
            "" if quantisation.applicable else f"Not measured: {quantisation.reason}.",
        ),
        Section(
            "kv-cache",
            "KV cache: how many first tokens to keep",
            "A cache that forgets the first tokens loses the keys that heads sink on.",
            cache_figures(record),
            missing="" if cache.applicable else f"Not measured: {cache.reason}.",
        ),
    ]


def _training_section(record: TrainingRun) -> Section:
    intro = f"{record.steps:,} steps, {record.tokens:,} tokens, {record.parameters:,} parameters."
    return Section("training", "While it was trained", intro, training_figures([(record.name, record)]))
