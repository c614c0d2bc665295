"""What the formats that models are served in cost, in which blocks, and what spikes have to do with it."""

from spikesink.positions import placed
from spikesink.records.advice import unmeasured
from spikesink.records.deployment import FormatDamage
from spikesink.records.interventions import Interventions
from spikesink.report.document import Part, Table
from spikesink.report.format import NONE, interval, listed, number, percent
from spikesink.report.interventions import ANOTHER_PROCESSOR, cost_text

KINDS = {
    "inputs": "What enters every linear map",
    "weights": "Weights of every linear map",
    "kv": "Keys and values",
}
SHOWN_BLOCKS = 3


def formats_part(record: Interventions) -> Part:
    """Formats of inputs, weights and caches, in the order of their scales."""
    section = record.formats
    by_kind = {kind: [row for row in section.rows if row.kind == kind] for kind in KINDS}
    return Part(
        "formats",
        "Formats that models are served in",
        "A scale that a spike sets makes ordinary values subnormal or zero; one that it cannot set leaves them.",
        tables=[table for kind, rows in by_kind.items() if rows for table in (_costs(kind, rows), _why(kind, rows))],
        note=" ".join(
            [
                "Each alone, the rest as it is. Spikes kept: spike tokens, of caches also sinks, in high precision and "
                "in no scale. Lost: share of the other tokens' values that become zero or subnormal. Worst blocks: "
                "what one costs alone, where the format costs enough to look.",
                ANOTHER_PROCESSOR,
                *_skipped(section.skipped),
                *unmeasured(section.missing),
            ]
        ),
    )


def _skipped(skipped: list[str]) -> list[str]:
    """What the model's sizes do not allow, by reason."""
    names: dict[str, list[str]] = {}
    for name, _, reason in (text.partition(": ") for text in skipped):
        names.setdefault(reason, []).append(name)
    return [f"Left out, since {reason}: {listed(each, 12)}." for reason, each in names.items()]


def _costs(kind: str, rows: list[FormatDamage]) -> Table:
    """What each costs, and what of it goes with spike tokens; weights have none."""
    columns = ["format", "perplexity", "cost in nats", "spikes kept", "spikes' share"][: 3 if kind == "weights" else 5]
    cells = [
        [
            row.name,
            number(row.perplexity.value),
            cost_text(row.loss_difference_nats),
            NONE if row.kept_loss_difference_nats is None else cost_text(row.kept_loss_difference_nats),
            interval(row.spike_share),
        ]
        for row in rows
    ]
    return Table(KINDS[kind], columns, [row[: len(columns)] for row in cells], words=1, brief=(columns[0], columns[2]))


def _why(kind: str, rows: list[FormatDamage]) -> Table:
    """What is lost, and where the damage is done."""
    columns = {
        "format": [row.name for row in rows],
        "worst blocks": [_worst(row) for row in rows],
        "lost": [percent(row.lost) for row in rows],
        "lost, spikes kept": [percent(row.lost_without_spikes) for row in rows],
    }
    left_out = {"worst blocks": not any(row.scanned for row in rows), "lost, spikes kept": kind == "weights"}
    shown = {name: cells for name, cells in columns.items() if not left_out.get(name)}
    cells = [list(row) for row in zip(*shown.values(), strict=True)]
    return Table(f"{KINDS[kind]}: why", list(shown), cells, words=1 + ("worst blocks" in shown))


def _worst(row: FormatDamage) -> str:
    """Blocks with their cost in nats; a dash where none was looked for, or none stands out."""
    shown = [f"{placed(each.block)} {each.loss_difference_nats.value:+.2g}" for each in row.worst_blocks[:SHOWN_BLOCKS]]
    return "; ".join(shown) or ("none" if row.scanned else NONE)
