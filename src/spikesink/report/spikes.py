"""The tokens that spike, in their text, and the rule that makes them spikes."""

from typing import Any

from spikesink.records import Anatomy
from spikesink.report.document import Section
from spikesink.report.format import number, printable, shown


def spikes_part(record: Anatomy) -> Section:
    """Every listed spike token with the text around it."""
    return Section(
        "tokens",
        "The tokens that spike",
        "Darker means larger; the number behind a token is the largest magnitude of its state.",
        part="tokens",
        content=_lines(record),
        note="" if record.summary.has_spikes else "No token reaches the rule for spikes.",
    )


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
