"""The section of a scan about the properties that define spikes, and whether sinks are at the same tokens."""

from typing import ClassVar

from spikesink.records.base import Frozen, Section
from spikesink.records.intervals import Interval
from spikesink.records.sections.heads import SinkTokenRule


class Property(Frozen):
    """One of the five properties as a number with a verdict. Sun et al. 2026, section 2."""

    name: str
    description: str
    value: float | None
    threshold: float
    holds: bool | None
    """Whether the value is on the good side of the threshold; None where it has no meaning, and `reason` says why."""
    control: float | None
    """The same number where it should not hold: other tokens, or random channels."""
    n: int
    """What the value is over: blocks, channels or tokens."""
    reason: str | None = None
    interval: Interval | None = None
    """Over sequences that were looked at; of (i) the mean over sequences of their own value, while `value` is of all
    of them together and may hang on one token. None for what is no quantity of sequences."""
    answer: str | None = None
    """`holds`, `does not hold`, or `borderline`: a limit a quarter stricter or laxer turns `holds`, or the interval
    has the limit inside. None where the value has no meaning."""
    sensitivity: list[float] | None = None
    """The stricter and the laxer limit that were tried."""


class TokenOverlap(Frozen):
    """Spike tokens against sink tokens among n tokens, those of the first half of each sequence, where sinks are looked
    for; chance = random sets of as many sink tokens."""

    n: int
    spikes: int
    sinks: int
    both: int
    precision: float | None
    """Share of spike tokens that are sink tokens."""
    recall: float | None
    """Share of sink tokens that are spike tokens."""
    jaccard: float | None
    chance_jaccard: float | None
    chance_high: float | None
    """97.5 % quantile over random sets."""
    p_value: float | None


class OverlapAtShare(Frozen):
    """The overlap if a sink token is one in at least so many heads; and the same without first tokens."""

    heads_share: float
    heads_min: int
    sinks: int
    jaccard: float | None
    recall: float | None
    """Share of these sink tokens that spike."""
    later_sinks: int
    later_jaccard: float | None


class Properties(Section):
    """The five properties of massive activations, and whether spike tokens are sink tokens. Spec section 2, claim 1."""

    section: ClassVar[str | None] = "properties"

    followed_channels: list[int]
    """Channels of (iii) and (iv): the spike channels and the three largest of the residual at the spike block."""
    properties: list[Property]
    sink_tokens: SinkTokenRule | None
    overlap: TokenOverlap | None
    overlap_later: TokenOverlap | None
    """Without the first token of each sequence, whose place alone makes it both."""
    overlap_reason: str | None
    overlap_curve: list[OverlapAtShare] | None = None
    """By the share of heads that makes a sink token, from one head on: the verdict depends on it."""
