"""Sections of the record about spikes: amplifier, trigger, normalisation. Spec sections 2.2 to 2.4.

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
