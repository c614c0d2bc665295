"""The record of interventions: the dissociation table and its verdict, quantisation, the KV cache, what to do.

Ratios are fractions; blocks are 1-based; losses are in nats; intervals are bootstrap intervals over sequences.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from spikesink.records.base import Frozen, Provenance, Record, Timing
from spikesink.records.deployment import (
    NO_FORMATS,
    NO_REMEDIES,
    Budget,
    Formats,
    KvCache,
    Quantisation,
    Remedies,
)
from spikesink.records.intervals import Estimate


class Draw(Frozen):
    """One draw of a control."""

    seed: int
    perplexity: float
    sink_ratio: float
    spike: float


class InterventionRow(Frozen):
    """What one intervention, control or the baseline did, on the same tokens as all others."""

    name: str
    control_of: str | None
    """The intervention that this is a control of; None for a real one."""
    target: str | None
    """What it edits: `spikes`, `sinks`, `tokens` or `input`; None for the baseline."""
    summary: str
    applicable: bool = True
    reason: str | None = None
    """Why it does not apply."""
    strength: float | None = None
    """Of a sweep: the level, in what the sweep's `strength` says."""
    perplexity: Estimate | None = None
    loss_difference_nats: Estimate | None = None
    """Mean over sequences of the loss minus the baseline's on the same tokens; controls: mean over draws first."""
    sink_ratio: Estimate | None = None
    sink_ratio_kept: Estimate | None = None
    """Sink ratio as a share of the baseline's; as every share None where that is 0."""
    downstream_sink_ratio: Estimate | None = None
    """Sink ratio of the blocks after the one where spikes are complete: earlier ones see a part of them at most."""
    downstream_sink_ratio_kept: Estimate | None = None
    """The same as a share of the baseline's."""
    spike: float | None = None
    """Largest magnitude after any block, over all sequences."""
    sequence_spike: Estimate | None = None
    """Mean over sequences of each sequence's largest magnitude."""
    plateau_kept: Estimate | None = None
    """Largest magnitude between the step-up and the step-down block, mean over sequences, as a share of the baseline's.

    Where spikes are gone, the step-down blocks still write what would have cancelled them, so `spike` alone misleads.
    """
    plateau_ratio_kept: Estimate | None = None
    """Largest magnitude over the median of its block, on the same blocks, as a share of the baseline's."""
    norm_ratio: Estimate | None = None
    """Largest norm of a token over the median token's, after the block where spikes are complete."""
    max_over_median: float | None = None
    """Largest over sequences and blocks; None where a median is 0."""
    spike_tokens: float | None = None
    """Tokens per sequence that hold a spike after the step-up block; None in a model without spikes."""
    spike_tokens_kept: Estimate | None = None
    """The same as a share of the baseline's."""
    spike_positions: dict[int, float] = Field(default_factory=dict)
    """Share of the sequences whose token at this position holds a spike; the first positions and those above 10 %."""
    cannot_answer: str | None = None
    """Why the row says nothing about the quantity that it does not aim at."""
    draws: list[Draw] = Field(default_factory=list)

    @property
    def other_kept(self) -> Estimate | None:
        """What is left of the quantity that it does not aim at: of sinks those behind the edit; of spikes the smaller
        of size and number, by the lower ends. None where nothing can be said."""
        if self.cannot_answer is not None:
            return None
        if self.target == "spikes":
            return self.downstream_sink_ratio_kept
        shares = [share for share in (self.plateau_kept, self.spike_tokens_kept) if share is not None]
        return min(shares, key=lambda share: share.low, default=None)

    @field_validator("spike_tokens_kept", mode="before")
    @classmethod
    def _without_interval(cls, kept: Any) -> Any:
        """Records of earlier versions have a number there."""
        return {"value": kept, "low": kept, "high": kept} if isinstance(kept, int | float) else kept


UNREAD = "the spikes are complete only behind the last attention block, where no other token reads them"
"""Why a model says nothing about one constant in place of its spikes."""


class Answer(Frozen):
    """One question of the double dissociation: `yes`, `no`, `undecided` or `not applicable`, and why."""

    question: str
    answer: str
    evidence: list[str]
    """Names of the rows that decided, or that left it open."""
    reason: str
    sensitivity: dict[str, str] = Field(default_factory=dict)
    """The answer with one threshold changed or one row left out, where that is another one; a decided answer that has
    any becomes undecided."""


class Dissociation(Frozen):
    """The verdict and the rules it follows from."""

    verdict: str
    """dissociated, coupled, sinks need spikes, spikes need sinks, undecided, or not applicable."""
    sentence: str
    sinks_need_spikes: Answer
    spikes_need_sinks: Answer
    constant_suffices: Answer
    rules: dict[str, Any]
    """Every threshold, and the rules in words."""


def silent(levels: Sequence[InterventionRow]) -> str | None:
    """Why a sweep says nothing about the quantity that it does not aim at; None where it does."""
    return next((row.cannot_answer for row in levels if row.control_of is None and row.cannot_answer), None)


class Dose(Frozen):
    """One intervention at several strengths, and the strengths at which what it does not aim at stays and falls."""

    name: str
    target: str
    strength: str
    """What a level means: `divided by`, or `share taken away`."""
    levels: list[InterventionRow]
    """The intervention at each level, weakest first, each followed by its controls."""
    stays_to: float | None = None
    """The other quantity stays at this level and every weaker one; None where it stays at none, or cannot be said."""
    falls_from: float | None = None
    """It has fallen, and not with the controls, at this level and every stronger one; None where it has at none."""
    sentence: str
    applicable: bool = True
    reason: str | None = None


class Recommendation(Frozen):
    """What a serving engineer can act on."""

    text: str
    tokens: list[dict[str, Any]]
    channels: list[int]
    blocks: list[int]
    modules: list[str] = Field(default_factory=list)
    """Linear maps of these blocks at whose input the damage is done, as `named_modules` calls them."""
    keep_sink_tokens: int | None
    budget: Budget | None = None
    """With which measures the loss stays within a budget; None where none was given."""
    prefix_ids: list[int] = Field(default_factory=list)
    """Token ids to put before every sequence; empty where they mend nothing, or were not asked for."""
    formats: dict[str, list[str]] = Field(default_factory=dict)
    """By kind (inputs, weights, kv) the formats within the budget, 0.05 nats without one, the cheapest first."""


class Interventions(Record):
    """The record of `spikesink intervene`."""

    file: ClassVar[str] = "interventions.json"
    arrays_file: ClassVar[str] = "interventions.safetensors"
    main: ClassVar[str | None] = "interventions"
    command: ClassVar[str] = "spikesink intervene"

    kind: str = "interventions"
    interventions: list[InterventionRow]
    dissociation: Dissociation
    quantisation: Quantisation
    kv_cache: KvCache
    formats: Formats = NO_FORMATS
    remedies: Remedies = NO_REMEDIES
    recommendation: Recommendation
    dose: list[Dose] = Field(default_factory=list)
    """Sweeps of strength; empty where none was asked for."""
    found: dict[str, Any]
    """What the scan of the held-out sequences found, without the states (they are in the arrays)."""
    provenance: Provenance
    timing: Timing

    @property
    def has_changes(self) -> bool:
        """Whether any row is there beside the baseline."""
        return any(row.name != "baseline" for row in self.interventions)

    @model_validator(mode="before")
    @classmethod
    def _without_retired_fields(cls, content: Any) -> Any:
        """Records of earlier versions also say what not computing pinned tokens saved."""
        if not isinstance(content, dict):
            return content
        return {name: value for name, value in content.items() if name != "skipping"}
