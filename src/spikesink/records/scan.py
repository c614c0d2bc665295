"""The record of a scan: spikes, life cycle, sinks, and the summary of them. Spec sections 2 and 3.

Ratios are fractions; block numbers are 1-based as in the paper (odd = attention, even = FFN); heads, channels and
positions are 0-based.
"""

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from spikesink.positions import placed
from spikesink.records.base import Frozen, JsonRecord, NotApplicable, Provenance, Record, Section, Timing
from spikesink.records.intervals import Interval


class Peak(Frozen):
    """The largest magnitude of one channel over all tokens, and where it was."""

    channel: int
    value: float
    """Magnitude."""
    sign: int
    sequence: int
    position: int


class BlockCycle(Frozen):
    """One residual block in the life cycle of a spike. Spec 2.1; figure 1 of Sun et al. 2026."""

    block: int
    kind: str
    """`attention`, `ffn`, or `mixer` where a layer of a hybrid model has something else in attention's place."""
    module: str | None = None
    """Name of the module that computes it, as `named_modules()` has it; None in records from before it was kept."""
    resid_top3: list[Peak] | None
    """Three distinct channels of the residual after this block; None where a parallel layer has no such residual."""
    out_top3: list[Peak]
    """The same of the block's own write."""
    resid_median: float | None
    """Median magnitude per sequence, averaged."""
    resid_max_over_median: float | None
    share_of_plateau: float | None
    """Signed contribution to the spike channels at spike tokens, as a share of the plateau; see StepRule."""


class StepRule(Frozen):
    """The rule that names step blocks: up to the verdict's block, a write of at least `share_min` of the plateau; after
    it, one of at most minus that. Spec 2.1."""

    share_min: float
    plateau: float | None
    """Mean magnitude on the spike channels at the verdict's block, over the tokens that the shares were measured on."""
    tokens: int
    """Tokens that the contributions were averaged over."""
    applies: bool
    reason: str | None


class Lifecycle(Frozen):
    """What each block adds to the residual stream, and which blocks make and remove the spike."""

    blocks: list[BlockCycle]
    step_rule: StepRule
    unrolled_sum_holds: bool
    """False in a post-norm model, whose residual is itself normed, so that writes do not add up."""


class SpikeToken(Frozen):
    """A token whose residual holds a spike at the verdict's block."""

    sequence: int
    position: int
    token_id: int
    text: str
    value: float
    before: str | None = None
    """Text of a few tokens before it; None in records from before this was kept."""
    after: str | None = None


class MassiveChannel(Frozen):
    """One channel that meets Sun et al. 2024's criterion somewhere. Every element is in the arrays."""

    channel: int
    count: int
    """Elements: tokens x blocks."""
    tokens: int
    first_block: int
    last_block: int
    largest: float


class SpikeVerdict(Frozen):
    """Thresholds behind `has_spikes` and what counted under each published criterion."""

    max_over_median_min: float
    token_ratio_min: float
    """A block has spikes if its largest / median magnitude reaches the first and its token ratio the second, in few
    tokens."""
    token_share_max: float | None = None
    """Few: at most this share of all tokens, or two a sequence. None in records from before this rule."""
    reason: str | None = None
    """Why there are no spikes."""
    token_share: float | None = None
    """Share of the tokens that reach the threshold of a spike token at the verdict's block."""
    token_ratio: float
    """Largest over median magnitude within the token that has its sequence's largest; the largest over sequences and
    blocks."""
    share_of_spike_min: float
    sun2024_absolute: float
    sun2024_ratio: float
    verdict_block: int
    """Where spike channels and tokens were read: of the blocks that have spikes, the one with the largest magnitude;
    `spike_block` where none has."""
    massive_count: int
    """Elements of all residuals with |a| > sun2024_absolute and |a| > sun2024_ratio x the median. Sun et al. 2024."""
    massive_blocks: list[int]
    massive_channels: list[MassiveChannel] = Field(default_factory=list)
    """The channels they are in, most elements first; empty in records from before this was kept."""
    token_count: int
    """Spike tokens found; `spike_tokens` of the summary lists the largest of them."""


class SinkHead(Frozen):
    """One query head. Importance of key k: alpha_k = (1/T) sum over queries of A[t, k]. Eq. 27."""

    block: int
    head: int
    first_key_importance: float
    max_importance: float
    """Largest alpha_k over the first half of the keys, averaged over sequences."""
    sink_rate: float
    """Share of sequences in which the head is a sink head under the chosen metric and epsilon."""
    is_sink: bool


class SinkRatio(Frozen):
    """Sink ratio at another threshold or on the first tokens of the sequences: what the chosen two decide."""

    tokens: int
    epsilon: float
    sun2026: float
    gu2025: float | None = None


class Sinks(Frozen):
    """Importance of keys by head, the criterion for a sink head, and ratios under other criteria."""

    metric: str
    epsilon: float
    ratio_reason: str | None = None
    """Why the sink ratio says nothing at this length: uniform attention itself exceeds epsilon."""
    by_epsilon: list[SinkRatio] = Field(default_factory=list)
    by_tokens: list[SinkRatio] = Field(default_factory=list)
    """Of text without padding; attention is causal, so the ratio on the first tokens is that of a text cut there."""
    uniform_first_key: float
    """alpha_1 of a head that attends uniformly to what it sees: the mean over queries of 1 / visible keys."""
    uniform_factor_min: float
    """A sink head must also reach this multiple of `uniform_first_key`."""
    sink_rate_min: float
    first_key_importance: float
    """Mean over heads and sequences."""
    virtual_mass: float | None
    """Mean attention mass on virtual keys (learned sinks, key-value bias), None where there are none."""
    heads: list[SinkHead]

    @property
    def importance_min(self) -> float:
        """Importance from which a key counts as a sink of a head."""
        return max(self.epsilon, self.uniform_factor_min * self.uniform_first_key)


class Summary(Frozen):
    """The answer in one place. Spec sections 2 ("Ours, exactly") and 3."""

    perplexity: float
    sink_ratio: float
    """Under the chosen metric."""
    sink_ratio_sun2026: float
    sink_ratio_gu2025: float
    sink1_gu2025: float
    has_sinks: bool
    sink_head_count: int
    head_count: int
    spike: float
    spike_block: int
    spike_channel: int
    has_spikes: bool
    spike_channels: list[int]
    spike_tokens: list[SpikeToken]
    massive_count: int
    max_over_median: float
    step_up_blocks: list[int]
    step_down_blocks: list[int]


class Anatomy(Record):
    """The record of one model on one set of tokens; further measures add sections under their own names.

    Arrays: `residual_channel_max` (residual, channel) of `residual_blocks`, `write_channel_max` (block, channel),
    `key_importance` (block, head, key) of `attention_blocks`, by sequence `sequence_loss_nats` (NaN for one of a single
    token), `sequence_spike` and `sequence_sink_ratio` (the last two not in older records), and the elements that are
    massive by Sun et al. 2024: `massive` (element, 4), sequence, position, block and channel, until 100,000 are listed.
    """

    model_config = ConfigDict(extra="allow")
    file: ClassVar[str] = "anatomy.json"
    arrays_file: ClassVar[str] = "arrays.safetensors"
    command: ClassVar[str] = "spikesink scan"

    kind: str = "anatomy"
    summary: Summary
    lifecycle: Lifecycle
    spikes: SpikeVerdict
    sinks: Sinks
    provenance: Provenance
    timing: Timing

    @model_validator(mode="before")
    @classmethod
    def _typed_sections(cls, content: Any) -> Any:
        """Sections that were read from a file become what the measure made."""
        if not isinstance(content, dict):
            return content
        typed = dict(content)
        for name, section in content.items():
            if name in Section.known and isinstance(section, dict):
                kind = Section.known[name] if section.get("applicable", True) else NotApplicable
                typed[name] = kind.model_validate(section)
        return typed

    def further(self, name: str) -> Any:
        """The section of a further measure; None where it was not asked for."""
        return (self.model_extra or {}).get(name)

    def placed(self, block: int) -> str:
        """24 (layer 11, FFN), with what the life cycle knows of the block."""
        return placed(block, next((cycle.kind for cycle in self.lifecycle.blocks if cycle.block == block), None))


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
