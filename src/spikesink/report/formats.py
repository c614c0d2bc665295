"""What the formats that models are served in cost, and what spikes have to do with it."""

from spikesink.records.interventions import FormatDamage, Interventions
from spikesink.report.document import Part, Table
from spikesink.report.format import NONE, interval, listed, number, percent
from spikesink.report.interventions import cost_text


def formats_part(record: Interventions) -> Part:
    """Floating-point formats, dearest scales first."""
    rows = record.formats.rows
    inputs = [row for row in rows if row.kind == "inputs"]
    cache = [row for row in rows if row.kind == "kv"]
    columns = ("format", "perplexity", "cost in nats", "of it spikes'", "lost", "lost without spikes")
    return Part(
        "formats",
        "Formats that models are served in",
        "A scale that a spike sets makes ordinary values subnormal or zero; one that it cannot set leaves them.",
        tables=[
            *(
                [Table("What enters every linear map", columns, [_cells(row) for row in inputs], words=1)]
                if inputs
                else []
            ),
            *([Table("Keys and values", columns, [_cells(row) for row in cache], words=1)] if cache else []),
        ],
        note=" ".join(
            [
                "Weights stay as they are. Lost: share of the other tokens' values that become zero or subnormal.",
                *(f"Left out: {listed(record.formats.skipped)}." for _ in record.formats.skipped[:1]),
            ]
        ),
    )


def _cells(row: FormatDamage) -> list[str]:
    return [
        row.name,
        number(row.perplexity.value),
        cost_text(row.loss_difference_nats),
        interval(row.spike_share),
        percent(row.lost),
        NONE if row.lost_without_spikes is None else percent(row.lost_without_spikes),
    ]
