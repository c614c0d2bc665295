"""The tokens that spike, in their text, and the rule that makes them spikes."""

from typing import Any

from spikesink.records import Anatomy
from spikesink.report.document import Section, Table
from spikesink.report.format import counted, number, printable, shown

LISTED = 12
"""Massive channels in the table."""


def spikes_part(record: Anatomy) -> Section:
    """Every listed spike token with the text around it."""
    return Section(
        "tokens",
        "The tokens that spike",
        "Darker means larger; the number behind a token is the largest magnitude of its state.",
        part="tokens",
        content=_lines(record),
        tables=_massive(record),
        note="" if record.summary.has_spikes else "No token reaches the rule for spikes.",
    )


def _massive(record: Anatomy) -> list[Table]:
    """Channels that meet Sun et al.'s criterion, most elements first."""
    rule = record.spikes
    rows = [
        [f"{item.channel}", f"{item.count:,}", f"{item.tokens:,}", f"{item.first_block} to {item.last_block}",
         number(item.largest)]
        for item in rule.massive_channels[:LISTED]
    ]  # fmt: skip
    if not rows:
        return []
    note = f"Elements above {rule.sun2024_absolute:g} and {rule.sun2024_ratio:g} × the median of their residual, in "
    note += f"{counted(len(rule.massive_channels), 'channel')}."
    columns = ("channel", "elements", "tokens", "blocks", "largest")
    return [Table("Massive activations by Sun et al. 2024", columns, rows, note=note, brief=())]


def _lines(record: Anatomy) -> list[dict[str, Any]]:
    """Spike tokens, the largest first, and how dark they are from 1 to 5."""
    top = max((token.value for token in record.summary.spike_tokens), default=1.0)
    return [
        {
            "place": f"sequence {token.sequence}, position {token.position}",
            "before": printable(token.before or ""),
            "text": shown(token.text) or "(empty)",
            "after": printable(token.after or ""),
            "value": number(token.value),
            "shade": max(1, min(5, round(5 * token.value / top))),
        }
        for token in record.summary.spike_tokens
    ]
