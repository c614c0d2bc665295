"""The section of a scan about what every head does, beside its sink."""

from typing import ClassVar

from spikesink.records.base import Frozen, Section
from spikesink.records.intervals import Interval


class SinkTokenRule(Frozen):
    """A sink token is a key of the first half of its sequence with alpha_k > importance_min in heads_min heads."""

    importance_min: float
    """Of the longest sequence; shorter ones, whose first key uniform attention gives more, have a higher one."""
    heads_min: int
    tokens: int
    """Sink tokens in the text."""


class HeadTrace(Frozen):
    """One head, means over queries that are no sink token. Sun et al. 2026, section 3."""

    block: int
    head: int
    sink_mass: float
    distance: float | None
    """Tokens between query and key with the sink taken out and the rest renormalised per query, then averaged; None
    where nothing is left."""
    distance_by_mass: float | None
    """The same weighted by what each query has left, so that queries with nearly all on the sink hardly count."""
    entropy_nats: float
    value_norm_sink: float | None
    """Mean norm of the values of sink tokens."""
    value_norm_other: float | None
    write_norm: float | None
    """Norm of what the head adds to the residual stream, before an output norm; None as `writes_reason` says."""
    write_norm_without: float | None
    """The same without the sink's part."""
    write_norm_renormalised: float | None
    """The same with the sink's mass given to the other keys."""
    distance_queries: int | None = None
    """Queries that `distance` is over: those with anything left outside the sink."""
    renormalised_queries: int | None = None
    """Queries that `write_norm_renormalised` is over."""
    mass_with_write: float | None = None
    """Correlation over queries of the mass on the sink with the norm of the head's write, within positions: whether the
    sink turns the head down from token to token. None where one of them does not vary."""
    mass_with_distance: float | None = None
    """The same with the distance of what is left."""
    loss_effect_nats: Interval | None
    """Rise of the loss when the sink's part of this head's write is taken out of the last residual: the direct path
    only, later blocks unchanged. Interval over tokens. None as `loss_reason` says."""


class HeadCorrelation(Frozen):
    """Spearman's rank correlation over heads with a bootstrap interval over layers, whose heads are not independent."""

    one: str
    other: str
    over_heads: Interval
    within_layers: Interval
    """After taking out each layer's mean: what depth alone cannot explain."""


class Modulation(Frozen):
    """Within heads: how the mass on the sink goes with `write` or `distance` over queries at the same position."""

    other: str
    mean: Interval
    """Of the correlation over heads, with an interval over layers."""
    negative_share: float | None
    """Share of the heads whose correlation is negative."""


class LossTest(Frozen):
    """Does a head's sink part move the loss? Signed direct effects of some heads against random directions.

    The mean *size* of an effect is fixed by the length of what is taken out, to first order, whatever its direction;
    what tells the sink's part from a random one is its sign.
    """

    heads: int
    """Drawn with a fixed seed."""
    tokens: int
    sequences: int
    alpha: float
    """Error rate of the two tests by Holm over heads; p-values are clustered by sequence."""
    sink_nats: Interval
    """Mean over heads of the mean rise of the loss without the sink's part; interval over heads."""
    sink_rejected: int
    """Heads whose mean differs from zero."""
    control_nats: Interval
    """The same with a random direction of the same length for every token."""
    control_rejected: int
    difference_nats: Interval
    """Sink less control, mean over these heads and all tokens; interval over sequences."""
    difference_p_value: float
    """Two-sided, of that mean being zero, clustered by sequence."""


class Heads(Section):
    """Attention heads and their sink. Sun et al. 2026, section 3: sinks bias heads to short range."""

    section: ClassVar[str | None] = "heads"

    sink_tokens: SinkTokenRule
    queries: int
    uniform_distance: dict[int, float]
    """By block: distance of a head that attends uniformly to what is no sink."""
    heads: list[HeadTrace]
    correlations: list[HeadCorrelation]
    loss_tokens: int
    """Predictions that loss effects are means of."""
    loss_test: LossTest | None = None
    modulation: list[Modulation] | None = None
    loss_control_nats: Interval | None = None
    """In records of version 0.2 and older: mean |effect| of a random direction of the same length."""
    loss_sink_nats: Interval | None = None
    """In such records: mean |effect| of the sink's part over the same heads."""
    writes_reason: str | None
    loss_reason: str | None
