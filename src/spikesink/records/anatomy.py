"""Sections of the record that further measures fill: amplifier, trigger, normalisation, heads, geometry, properties.

Ratios and shares are fractions; block numbers are 1-based; heads, channels and positions are 0-based. A number that
has no meaning is null, and `reason` or the field's comment says why.
"""

from typing import ClassVar

from spikesink.records.base import Frozen, Section


class Interval(Frozen):
    """A mean or coefficient with its bootstrap interval over `n` units; null where there are too few."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class Prediction(Frozen):
    """A prediction against the truth over n tokens: sum(predicted) / sum(true), and R^2 about the mean of the truth."""

    n: int
    ratio: float | None
    r2: float | None


class AmplifierChannel(Frozen):
    """||U_k||_F of one channel and the eigenvalues of S_k that are largest by magnitude. Sun et al. 2026, figure 4."""

    channel: int
    frobenius: float
    rank: int
    """0 where no channel of the block has a larger norm."""
    eigenvalues: list[float]
    expert: int | None = None
    """In a mixture of experts, the expert with the largest norm for this channel; -1 the shared one."""


class AmplifierBlock(Frozen):
    """One FFN block; without channels where it has no quadratic form, and `reason` says why."""

    block: int
    experts: int
    """Gated maps in the block: 1 for a dense FFN."""
    median_frobenius: float | None
    """Median over channels (and experts)."""
    channels: list[AmplifierChannel]
    reason: str | None = None


class OutlierChannel(Frozen):
    """A channel whose ||U_k||_F is far above the median of its FFN."""

    block: int
    channel: int
    expert: int | None
    frobenius: float
    over_median: float
    """Norm over the median norm of the block's channels."""


class GateStatistics(Frozen):
    """Means over tokens; 1 and 1 where the gate is the identity. Spec 2.2."""

    n: int
    cosine: float | None
    norm_ratio: float | None


class StepAmplifier(Frozen):
    """One channel of a step FFN: its rank-one form lambda* ||h~||^2 cos^2(s*, h~) against the block's true output."""

    block: int
    channel: int
    eigenvalue: float
    """lambda*"""
    next_eigenvalue: float | None
    share_of_spectrum: float
    """lambda*^2 / ||S_k||_F^2"""
    alignment_spike: float | None
    """Mean |cos(s*, h~)| at spike tokens."""
    alignment_other: float | None
    rank_one_first: Prediction
    """At position 0."""
    rank_one_spike: Prediction
    rank_one_other: Prediction
    quadratic_spike: Prediction
    """The whole form h~^T S_k h~: what is missing is the gate's distance from the identity."""
    quadratic_other: Prediction


class StepGate(Frozen):
    """How near the gate of an FFN block is to the identity; `control` marks a block in the plateau, not a step."""

    block: int
    control: bool
    spike: GateStatistics
    other: GateStatistics


class SharedDirection(Frozen):
    """Mean |cos| between the s* of followed channels of a block, and of random channels as control."""

    block: int
    channels: list[int]
    mean_cosine: float | None
    control_cosine: float | None
    control: Interval | None = None
    """The control with its interval over random channels."""


class Amplifier(Section):
    """The FFN as a directional quadratic amplifier. Sun et al. 2026, section on figures 2-4 and 8; spec 2.2.

    Arrays: `amplifier.norms` (row, channel), with the block and expert of each row in `amplifier.blocks` and
    `amplifier.experts` (-1 = the shared expert, -2 = a dense FFN); `amplifier.directions` (row, d): the s* of `steps`.
    """

    section: ClassVar[str | None] = "amplifier"

    spike_channel: int
    followed_channels: list[int]
    """The spike channel, further spike channels, and the three largest of the residual at the spike block."""
    outlier_over_median_min: float
    outliers: list[OutlierChannel]
    """Channels whose norm reaches that multiple of the block's median; the largest of them."""
    outlier_count: int
    outlier_blocks: list[int]
    blocks: list[AmplifierBlock]
    steps: list[StepAmplifier]
    gates: list[StepGate]
    directions: list[SharedDirection]
    steps_reason: str | None
    """Why steps, gates and directions are empty."""
    erratum: str = (
        "Eq. 19 ends in lambda* sqrt(d) cos(s*, h~); since ||h~|| = sqrt(d), it must be lambda* d cos^2(s*, h~), and "
        "that is what is measured here."
    )


class ProbeCount(Frozen):
    """Vocabulary items whose largest magnitude exceeds a threshold: alone at position 0, and behind a random prefix."""

    criterion: str
    """`sun2024`: above 100 and 1000 x the median of ordinary text; `share_of_spike`: the scan's share of its spike;
    `absolute_1000`: above 1,000."""
    threshold: float
    first_count: int
    first_ratio: float
    later_count: int
    later_ratio: float


class ProbeException(Frozen):
    """An item that does not spike alone at position 0."""

    token_id: int
    text: str
    value: float
    embedding_norm: float


class VocabularyProbe(Frozen):
    """Every vocabulary item alone at position 0, and once at a later position behind random items. Table 2."""

    block: int
    """Magnitudes are of the residual after this block, the last step-up block; the forward pass ends there."""
    items: int
    later_length: int
    """Tokens in a sequence of the control; items stand at positions 1 and later."""
    ordinary_median: float
    """Median magnitude of the residual of the scanned text: a spike token raises its own median."""
    criterion: str
    """The criterion that exceptions are listed under."""
    counts: list[ProbeCount]
    first_median: float
    """Median over items of the largest magnitude at position 0."""
    later_median: float
    exceptions: list[ProbeException]
    exception_count: int
    median_embedding_norm: float


class FirstTokenBlock(Frozen):
    """One early attention block: mean |cos| with s* of residual before, write, residual after. Spec 2.3; eq. 22."""

    block: int
    before_first: float | None
    """Items alone at position 0, which attend only to themselves: attention is the fixed map W_VO. None where a
    parallel layer has no such residual, here and below."""
    write_first: float | None
    after_first: float | None
    before_later: float | None
    """Control: ordinary tokens of the text at later positions."""
    write_later: float | None
    after_later: float | None
    map_gain: float | None
    """||s*^T W_VO|| sqrt(d) / ||W_VO||_F: 1 for a direction that W_VO treats as any other."""
    map_gain_random: float | None
    """The largest of it over random directions."""
    map_reason: str | None = None


class FirstTokenMap(Frozen):
    """How the first token comes to point along s*, block by block before the step-up. Eq. 22."""

    step_block: int
    channel: int
    n_first: int
    n_later: int
    random_cosine: float
    """Mean |cos| of random directions, sqrt(2 / (pi d))."""
    blocks: list[FirstTokenBlock]


class TokenClass(Frozen):
    """Means over the tokens of a class in one early attention block, with bootstrap intervals over sequences."""

    name: str
    """`first` (position 0), `delimiter` (no letter or digit) or `other`."""
    tokens: int
    self_attention: Interval
    """A[t, t], mean over heads."""
    uniform: float | None
    """What a head that attends uniformly would give, the mean of 1 / (t + 1)."""
    norm_magnitude: Interval
    """||norm(h)|| / sqrt(d), with gamma: 1 where gamma has no effect."""
    gamma_cosine: Interval
    """cos(h, gamma) of the residual that the block reads; in block 1 that is the embedding."""


class SelfSinkingBlock(Frozen):
    """Self-attention by class of token in one early attention block. Spec 2.3."""

    block: int
    classes: list[TokenClass]


class AttentionAblationRow(Frozen):
    """The attention blocks from the first to the last of these add nothing to the residual stream."""

    first_block: int
    last_block: int
    spiking_share: float
    """Share of the items that still spike."""


class AttentionAblation(Frozen):
    """Items alone at position 0 with early attention writes left out: does attention make them spike? Eq. 22."""

    block: int
    """Magnitudes are of the residual after this block, the last step-up block."""
    threshold: float
    """Of the probe's listed criterion."""
    items: int
    spiking_share: float
    """With all attention."""
    kept_min: float
    free_from: int | None
    """The earliest block from which on attention may be left out and at least `kept_min` of the items that spike still
    do; None where the last attention block alone is needed."""
    rows: list[AttentionAblationRow]
    """From each attention block up to the last one before `block`; the last row is the first block alone."""


class Trigger(Section):
    """Which tokens spike and why. Sun et al. 2026, table 2; spec 2.3.

    Arrays: `trigger.first`, `trigger.later` (item,): largest magnitude per vocabulary item; `trigger.embedding_norm`.
    """

    section: ClassVar[str | None] = "trigger"

    probe: VocabularyProbe
    first_token_map: FirstTokenMap | None
    first_token_reason: str | None
    self_sinking: list[SelfSinkingBlock] | None
    self_sinking_reason: str | None
    attention_ablation: AttentionAblation | None = None
    attention_ablation_reason: str | None = None


class NormStatistics(Frozen):
    """h~ of a group of tokens after one block. Sun et al. 2026, eq. 23-25."""

    tokens: int
    prompts: int
    bound: float | None
    """Largest |h~_i| / sqrt(d). At most 1 for any vector, so no finding: near 1 says that one channel is all."""
    energy_share: float | None
    """Mean share of ||h~||^2 in the spike channels."""
    participation_ratio: float | None
    """Mean number of channels that carry the energy, (sum h~^2)^2 / sum h~^4."""
    cosine_within: float | None
    """Mean cosine over pairs of tokens of one prompt; None where no prompt has two."""
    cosine_across: float | None
    """Mean cosine over pairs of tokens of different prompts."""
    persistence: float | None
    """Mean cosine with the same token after the previous block."""


class NormalisationBlock(Frozen):
    """Spike tokens and the others after one block, normed."""

    block: int
    spike: NormStatistics
    other: NormStatistics


class ImplicitParameter(Frozen):
    """Share of h~'s energy at the spike block that the mean over all other prompts explains; 1 = a constant."""

    block: int
    explained_spike: float | None
    explained_other: float | None
    """Control: the tokens that do not spike."""
    prompts_spike: int
    prompts_other: int
    before_block: int | None = None
    """The block before the step-up: spike tokens are mostly first tokens, which are alike before they spike as well."""
    explained_spike_before: float | None = None
    """Of the same tokens there."""
    explained_spike_without_channels: float | None = None
    """At the spike block with the spike channels taken out of h~."""
    distinct_spike_tokens: int
    """Different token ids among the spike tokens: with 1 (a BOS) a constant vector says nothing."""


class Normalisation(Section):
    """What normalisation does to spike tokens. Sun et al. 2026, figure 5; spec 2.4."""

    section: ClassVar[str | None] = "normalisation"

    norm: str
    """Kind of the norm that residuals are seen through."""
    spike_channels: list[int]
    blocks: list[NormalisationBlock]
    implicit: ImplicitParameter


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
