"""Sections of the record about sinks: heads, geometry, and the properties that tie spikes to sinks. Spec section 3.

The conventions are those of `anatomy_spikes`.
"""

from typing import ClassVar

from spikesink.records.anatomy_spikes import Interval
from spikesink.records.base import Frozen, Section


class SinkTokenRule(Frozen):
    """A sink token is a key of the first half of its sequence with alpha_k > importance_min in heads_min heads."""

    importance_min: float
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


class KeyRank(Frozen):
    """Effective rank of n keys, and of as many keys that are no sink's, since rank grows with number."""

    n: int
    rank: float
    rank_other: float


class KeyPart(Frozen):
    """Keys of one block as sums of columns of W_K: the share of their energy that few input channels bring. Eq. 26.

    The share is 1 - ||k - sum over the channels of h~_c W_K[:, c]||^2 / ||k||^2 over all keys together; it can be
    negative where parts cancel. Channels are ordered by the energy of their parts.
    """

    block: int
    n: int
    channels: list[int]
    """Of the keys of spike tokens, the largest first."""
    explained: list[float]
    """By the first one, two, ... of them."""
    n_other: int
    explained_other: list[float]
    """The same for keys that are no sink's, with their own largest channels: the control."""


class KeyGeometry(Frozen):
    """Keys of one KV head before the rotary embedding: those of sink tokens against as many others."""

    block: int
    kv_head: int
    n: int
    """Sink keys; as many other keys are drawn, since rank grows with number."""
    rank_sink: float
    """Effective rank, exp of the entropy of the singular values. Roy & Vetterli 2007."""
    rank_other: float
    n_spike: int
    rank_spike: float | None
    """Of the sink keys that belong to spike tokens; None for fewer than two."""
    energy_rank_sink: int
    """Directions that hold 99 % of the squared norm."""
    energy_rank_other: int
    energy_rank_spike: int | None
    first: KeyRank | None = None
    """Sink keys of first tokens; None for fewer than two."""
    later: KeyRank | None = None
    """Sink keys of later tokens, which need not look like those."""
    norm_sink: float
    norm_other: float
    separability: float | None
    """Area under the ROC curve of the mean difference, learnt on half of the sequences and tested on the others."""
    separability_control: float | None
    """The same for random tokens called sinks."""


class LogitGap(Frozen):
    """One query head: the sink's attention logit less the mean of the other keys', over queries. Eq. 26."""

    block: int
    head: int
    is_sink: bool
    gap: float
    """Mean over queries, after the rotary embedding; before any softcap."""
    gap_std: float
    """A sink's gap is large and constant."""
    content: float
    """Part of the gap that is there before the rotary embedding: q.k_sink against q.k_other."""
    distance: float
    """The rest: what the positions add."""
    positive_share: float
    """Share of queries whose gap is positive."""
    cosine_sink: float
    """Mean cos(q, k_sink), pre-RoPE."""
    cosine_other: float


class KeyPlane(Frozen):
    """A head's queries and keys in the plane of their two principal components; points are in the arrays."""

    name: str
    """`sink_head` or `other_head`: prefix of the arrays."""
    block: int
    head: int
    importance: float
    explained: float
    """Share of the variance that the plane holds."""


class Geometry(Section):
    """Keys and queries of sinks before the rotary embedding. Sun et al. 2026, figure 6; spec section 3.

    Arrays: `geometry.NAME_points` (n, 2) and `geometry.NAME_kinds` (n,) for the planes: 0 = query, 1 = sink key,
    2 = other key. The same with fewer points for every head, each in its own plane: `geometry.head_points` (block,
    head, n, 2) of `geometry.head_blocks`, `geometry.head_kinds` (n,), and the share of variance that each plane holds,
    `geometry.head_explained` (block, head).
    """

    section: ClassVar[str | None] = "geometry"

    sink_tokens: SinkTokenRule
    sequences: int
    queries: int
    keys: list[KeyGeometry]
    gaps: list[LogitGap]
    gap_and_sink: Interval
    """Rank correlation over heads between the gap and the head's largest importance."""
    planes: list[KeyPlane]
    key_parts: list[KeyPart] | None = None
    """In the blocks between a spike's step-up and its step-down; None as `key_parts_reason` says."""
    key_parts_reason: str | None = None


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
