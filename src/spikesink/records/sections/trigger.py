"""The section of a scan about which tokens spike, and why."""

from typing import ClassVar

from spikesink.records.base import Frozen, Section
from spikesink.records.intervals import Interval


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
    """Magnitudes are of the residual after this block, the last step-up block, or the last of its layer where that is
    parallel; the forward pass ends there."""
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
    """`first` (of its sequence), `delimiter` (no letter or digit) or `other`."""
    tokens: int
    self_attention: Interval
    """A[t, t], mean over heads."""
    uniform: float | None
    """What a head that attends uniformly would give, the mean of 1 / (t + 1), t counted without padding."""
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
    """Magnitudes are of the residual after this block, that of the vocabulary probe."""
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
