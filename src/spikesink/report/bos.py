"""What a scan with and without BOS says: both conditions side by side."""

from spikesink.records.bos import BosPair, BosSide
from spikesink.report.conditions import condition_table, line, name
from spikesink.report.document import Document, Merit, Section, Statement, Table
from spikesink.report.format import number, percent


def bos_document(record: BosPair) -> Document:
    """Of one model on one text."""
    cost = record.loss_difference_nats
    columns = [_column(side) for side in (record.with_bos, record.without_bos)]
    rows = [[quantity, columns[0][quantity], columns[1][quantity]] for quantity in columns[0]]
    return Document(
        kind="bos_pair",
        title=f"{name(record.provenance.model)} with and without BOS",
        lead="the same text, with BOS in front and without it",
        statements=[Statement("BOS", record.sentence)],
        merits=[Merit("leaving it out", cost.value, "nats", cost.low, cost.high, "of loss, on the same predictions")],
        sections=[Section("bos", "With and without", tables=[Table("Both", ("", "with BOS", "without"), rows)])],
        conditions=[(record.file, condition_table(record))],
        condition=line(record),
    )


def _column(side: BosSide) -> dict[str, str]:
    return {
        "perplexity": number(side.perplexity),
        "largest magnitude": number(side.spike),
        "over the median": number(side.max_over_median),
        "spikes": "yes" if side.has_spikes else "no",
        "first tokens that spike": percent(side.first_spikes),
        "tokens that spike": percent(side.spike_token_share),
        "sink ratio": percent(side.sink_ratio),
        "sinks": "yes" if side.has_sinks else "no",
        "attention on the first token": percent(side.first_key_importance),
    }
