"""The record of a model with and without its BOS token in front of the same text."""

from typing import ClassVar, Literal

from spikesink.records.anatomy import Interval
from spikesink.records.base import Frozen, JsonRecord, Provenance, Timing


class BosSide(Frozen):
    """One condition, from the summary of its own record."""

    perplexity: float
    spike: float
    max_over_median: float
    has_spikes: bool
    spike_channels: list[int]
    spike_token_share: float
    first_spikes: float | None
    """Share of the sequences whose first token, BOS or not, is a spike token; None where not all spike tokens are
    listed."""
    sink_ratio: float
    has_sinks: bool
    first_key_importance: float
    """Mean over heads and sequences of the attention on the first token, BOS or not."""


class BosPair(JsonRecord):
    """Spikes, sinks and loss with BOS and without; the text tokens are the same in both."""

    kind: Literal["bos_pair"] = "bos_pair"
    command: ClassVar[str] = "spikesink scan --bos both"
    file: ClassVar[str] = "bos.json"

    with_bos: BosSide
    without_bos: BosSide
    loss_difference_nats: Interval
    """Loss without BOS less that with it, on the predictions that both make; over sequences."""
    sentence: str
    provenance: Provenance
    """Of the scan with BOS."""
    timing: Timing
