"""The records of a study: one small file per (variant, seed) cell, and the table and verdicts made from them.

Ratios are fractions; losses are in nats; intervals are over seeds: Student's t on the log or logit scale under rules
version 2, a percentile bootstrap in records of version 1.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field

from spikesink.records.base import Frozen, JsonRecord, Provenance, Timing

SPEAKS_SINCE = 3
"""Version of the rules from which on studies speak for claims beside each other."""
PARTS = ("spike_max_over_median", "tokens_per_spike", "within_token", "norm_ratio")
"""What a spike is: extreme, in few tokens, in few channels; and the token's norm over the others'. Free of scale."""
TITLES = {
    "spike": "spike", "spike_max_over_median": "max / median", "max_over_median": "max / median of any block",
    "tokens_per_spike": "tokens a spike token", "within_token": "within token", "norm_ratio": "norm ratio",
    "sink_ratio": "sink ratio", "first_token_importance": "first-token importance",
    "virtual_mass": "attention on no token", "perplexity": "perplexity",
}  # fmt: skip
"""What the figures are called in tables and sentences; without a block named, at that of the largest residual."""
SHOWN = ("perplexity", "sink_ratio", "spike", "spike_max_over_median", "max_over_median", "first_token_importance",
         "virtual_mass")  # fmt: skip
"""Figures of a study's table, in its order."""
UNBOUNDED = 1e30
"""An interval's upper end from here on has no bound: a single seed, or a resample of the baseline that was 0."""
Sided = Literal["supported", "contradicted", "mixed", "undecided"]
Status = Literal["finished", "diverged", "failed"]
"""diverged: the loss stopped being finite, which is a result; failed: anything else, after a second try."""


class PaperResult(Frozen):
    """What the paper reports for a variant: 7B parameters, 100B tokens. Sun et al. 2026, tables 3 to 8."""

    table: int
    perplexity: float
    sink_ratio: float
    """Fraction."""
    spike: float


class Measured(Frozen):
    """What the final scan of a cell found on held-out sequences.

    Sinks are measured on the first 64 tokens as in the paper, spikes and perplexity on the whole context.
    """

    perplexity: float
    sink_ratio: float
    """Eq. 28."""
    spike: float
    """Largest magnitude in any residual after a block."""
    max_over_median: float
    first_token_importance: float
    """alpha_1 of eq. 27, mean over heads and sequences."""
    sink_ratio_gu2025: float
    sink_heads: int
    heads: int
    has_spikes: bool
    has_sinks: bool
    spike_token_share: float
    """Share of the tokens that hold a spike, as `scan` finds them; 0 without spikes."""
    massive_count: int
    held_out_loss_nats: float
    # At the block with the largest residual; records from before rules version 2 lack what follows.
    spike_max_over_median: float | None = None
    """Largest magnitude over the median one (per sequence, averaged)."""
    tokens_per_spike: float | None = None
    """Of rules version 2, in its records alone: tokens over those that reach a tenth of the largest magnitude."""
    within_token: float | None = None
    """Largest over median magnitude within the token that has its sequence's largest, averaged over sequences."""
    top3_energy: float | None = None
    """Share of that token's squared norm in its three largest channels, averaged over sequences."""
    norm_ratio: float | None = None
    """Largest over median norm of a sequence's tokens, averaged over sequences."""
    bos_over_rest: float | None = None
    """Largest magnitude at position 0 over the largest at the others, averaged over sequences."""
    sequence_tokens: int | None = None
    """T of the sequences that spikes were measured on."""
    uniform_importance: float | None = None
    """alpha_1 of a head that attends uniformly, at the length that sinks were measured at."""
    virtual_mass: float | None = None
    """Share of attention that lies on no token (a learned sink, a key-value bias, softmax off by one), mean over heads;
    None where there is no such place, and in records from before 27 November 2026."""


class CellFunction(Frozen):
    """What spikes and sinks do in a cell's model, on held-out sequences; claims 2 and 3 are judged by it."""

    spike_tokens: float
    """Per sequence; 0 without spikes."""
    spike_contexts: int | None = None
    """How many of the spike tokens differ, in the token or in those before it; in records of 27 November 2026 alone."""
    same_context: float | None = None
    """Largest share of the spike tokens that are one token behind the same ones; None in records from before it."""
    attention_behind: int | None = None
    """Attention blocks behind the one where the spikes are complete; None in records from before 28 November 2026."""
    freeze_nats: float | None = None
    """Cost of one learned constant in place of every spike token's state."""
    zero_nats: float | None = None
    """Cost of setting spike elements to zero."""
    random_constant_nats: float | None = None
    """Cost of a random constant of the learned one's norm."""
    spikes_missing: str | None = None
    """Why there are no costs."""
    write_with_mass: float | None = None
    """Correlation, over queries at one place, of the sink's mass with the norm of a head's write; mean over heads."""
    sink_head_distance: float | None = None
    """Distance that sink heads look with the sink taken out, over that of uniform attention; mean over sink heads."""
    distance_with_mass: float | None = None
    """Rank correlation of sink mass and that distance over heads, within layers; those without a sink are the control.
    """
    sinks_missing: str | None = None
    """Why the heads were not traced."""


class Curve(Frozen):
    """One quantity while training."""

    step: list[int]
    value: list[float]


def side(low: float | None, high: float | None, of: float = 0.0) -> int:
    """-1 for an interval below, 1 for one above, 0 for one around or none."""
    return 0 if low is None or high is None else (low > of) - (high < of)


def local_sided(write: Any, reach: Any, further: Any) -> Sided:
    """Of claim 3, by intervals: a head writes less where its sink takes more, and looks nearer than uniform attention
    (a reach below 1), not the farther the more its sink takes."""
    look = 1 if side(further.low, further.high) > 0 else side(reach.low, reach.high, of=1)
    sides = {side(write.low, write.high), look}
    if 0 in sides:
        return "undecided"
    return "mixed" if len(sides) > 1 else "supported" if -1 in sides else "contradicted"


class CellRecord(JsonRecord):
    """One training run of a study, small enough to be committed: what was trained, and what came out."""

    kind: Literal["cell"] = "cell"
    command: ClassVar[str] = "spikesink study"

    study: str
    preset: str
    variant: str
    seed: int
    status: Status
    error: str | None = None
    attempts: int = 1
    recipe: dict[str, Any]
    recipe_sha256: str
    parameters: int | None = None
    tokens: int
    """Seen in training."""
    measured: Measured | None = None
    function: CellFunction | None = None
    """None where it was not measured: in earlier records, and where the cell has no result."""
    curves: dict[str, Curve] = Field(default_factory=dict)
    """`loss_nats`, `spike`, `max_over_median`, `sink_ratio`, `first_token_importance` by step."""
    provenance: Provenance
    timing: Timing


class Spread(Frozen):
    """Mean and sample standard deviation over seeds; sd is None for a single one."""

    mean: float
    sd: float | None
    n: int


class VariantRow(Frozen):
    """One variant of the table."""

    variant: str
    summary: str
    changes: list[str]
    """What differs from the baseline's recipe, as `path: before -> after`."""
    seeds: list[int]
    """Of the finished cells, in the order of `values`."""
    diverged: int
    failed: int
    parameters: int | None
    tokens: int
    measured: dict[str, Spread]
    """By the names of `Measured`; empty where no cell finished."""
    values: dict[str, list[float]]
    """The same, one value a seed."""
    paper: PaperResult | None
    ceiling: float | None = None
    """What the spike of this arrangement can reach while its writes are independent and the norms' gain is 1:
    sqrt(2 L d) where every write is normed, sqrt(d) where the residual is; None where nothing bounds it."""

    @property
    def lost(self) -> str:
        """How many cells have no figures, and why, behind the name: `, 1 diverged`; empty where all have."""
        counts = {"diverged": self.diverged, "failed": self.failed}
        return "".join(f", {count} {what}" for what, count in counts.items() if count)


Change = Literal["falls", "stays", "rises", "unclear"]


class Effect(Frozen):
    """A variant over the baseline, with its interval, and what that is called under the rules."""

    metric: str
    ratio: float
    low: float
    high: float
    separate: bool
    """No seed of the one lies among the seeds of the other."""
    change: Change
    size: float | None = None
    """Hedges' g: the difference on the metric's scale in pooled standard deviations; None without a spread."""
    p_falls: float | None = None
    """Of 'it has not fallen', one-sided, after Holm over the variants."""
    p_stays: float | None = None
    """Of 'it has lost more than may be lost', the same."""
    seeds_needed: int | None = None
    """Seeds a variant at which nine in ten studies of this difference and spread would decide; None beyond 1,000."""

    @property
    def times(self) -> str:
        """× 0.21 [0.18, 0.25]; of perplexity, whose changes are small, to four digits."""
        digits = 4 if self.metric == "perplexity" else 2
        high = f"{self.high:.{digits}g}" if self.high < UNBOUNDED else "unbounded"
        return f"× {self.ratio:.{digits}g} [{self.low:.{digits}g}, {high}]"

    @property
    def outcome(self) -> str:
        """× 0.43 [0.27, 0.64] unclear, 128 seeds needed."""
        needed = f", {self.seeds_needed} seeds needed" if self.change == "unclear" and self.seeds_needed else ""
        return f"{self.times} {self.change}{needed}"


def _plural(change: str | None) -> str | None:
    return {"falls": "fall", "stays": "stay", "rises": "rise"}.get(change or "", change)


class VariantVerdict(Frozen):
    """What the rules say of one variant against the baseline."""

    variant: str
    verdict: str
    """spikes go, sinks stay; sinks go, spikes stay; both go; neither goes; undecided; diverged; and where one is
    decided alone: spikes go; spikes stay; sinks go; sinks stay."""
    sentence: str
    """The verdict, why, and of how many seeds; of rules version 1 with the effects."""
    effects: list[Effect]
    spikes: Change | Literal["not testable"] | None = None
    sinks: Change | None = None
    cost: Literal["none", "some", "unclear"] | None = None
    """In perplexity."""
    version_1: str | None = None
    """The verdict under the rules before these."""
    diverged: int = 0
    """Seeds without a result, since their loss stopped being finite."""

    def outcomes(self, metrics: Iterable[str], missing: str) -> list[str]:
        """Each of these changes in words."""
        outcomes = {effect.metric: effect.outcome for effect in self.effects}
        return [outcomes.get(metric, missing) for metric in metrics]

    @property
    def halves(self) -> str:
        """spikes stay, sinks fall, no cost."""
        cost = {"none": "no cost", "some": "a cost in perplexity"}.get(self.cost or "", "cost unclear")
        lost = f", {self.diverged} seed{'' if self.diverged == 1 else 's'} diverged" if self.diverged else ""
        return f"spikes {_plural(self.spikes)}, sinks {_plural(self.sinks)}, {cost}{lost}"


Side = Literal["for", "against", "nothing"]
SIDES: dict[Side, str] = {"for": "For", "against": "Against", "nothing": "Decides nothing"}


class ClaimVerdict(Frozen):
    """A claim of the paper, or a part of one, and what this study says about it."""

    claim: int | None
    """Of the paper's four; None for a finding that one study alone is about."""
    part: str | None = None
    text: str
    verdict: Literal["supported", "contradicted", "mixed", "undecided", "not tested"]
    """Contradicted: a decided opposite; mixed: both were seen."""
    evidence: str
    n: int | None = None
    """Models that were asked, of claims 2 and 3, which the baseline decides; None in records from before 28 November
    2026, and where none was."""
    speak: dict[str, Side] = Field(default_factory=dict)
    """What each variant that speaks for it shows; empty of claims 2 and 3, which the baseline decides, and in records
    from before 28 November 2026."""

    @property
    def title(self) -> str:
        """Claim 4 (sinks)."""
        part = f" ({self.part})" if self.part else ""
        return f"Claim {self.claim}{part}" if self.claim is not None else "Finding"

    @property
    def by_baseline(self) -> bool:
        """Whether a study's baseline alone decides it: claims 2 and 3 are about what a trained model does."""
        return self.claim in (2, 3)


class CellCurves(Frozen):
    """The learning curves of one cell."""

    variant: str
    seed: int
    curves: dict[str, Curve]


class StudyRecord(JsonRecord):
    """The table, the verdicts with the rules behind them, and the learning curves."""

    kind: Literal["study"] = "study"
    main: ClassVar[str | None] = "rows"
    command: ClassVar[str] = "spikesink study"

    study: str
    preset: str
    about: str
    baseline: str
    pretrained: str | None = None
    """The finished model that every cell began from; None for models from scratch."""
    rows: list[VariantRow]
    verdicts: list[VariantVerdict]
    claims: list[ClaimVerdict]
    rules: dict[str, float]
    rules_version: int = 1
    errors: list[str]
    """One line for each cell that diverged or failed."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Variants of the grid that cannot be made of the base recipe, and why; earlier files do not say."""
    cells: list[CellCurves]
    provenance: Provenance
    timing: Timing

    @property
    def columns(self) -> list[str]:
        """The figures that the table shows: those that a variant has, and one max / median: at the block of the
        largest residual where all have it, which is what the rules ask for."""
        finished = [row.measured for row in self.rows if row.seeds]
        at_block, of_any = "spike_max_over_median", "max_over_median"
        second = of_any if all(at_block in measured for measured in finished) else at_block
        return [name for name in SHOWN if name != second and any(name in measured for measured in finished)]

    @property
    def compared(self) -> list[str]:
        """The metrics of the changes against the baseline."""
        metrics = {effect.metric for judged in self.verdicts for effect in judged.effects}
        return [metric for metric in (*TITLES, *sorted(metrics - {*TITLES})) if metric in metrics]

    def effect_title(self, metric: str) -> str:
        """What a change is of, in words: importance counts from uniform attention's, and under some rules a part of the
        spike from 1."""
        if metric == "first_token_importance" and any("uniform_importance" in row.measured for row in self.rows):
            return f"{TITLES[metric]} beyond uniform"
        least = self.rules.get("part_least")
        return TITLES.get(metric, metric) + (f" beyond {least:g}" if least and metric in PARTS else "")

    @property
    def bounds(self) -> str:
        """A sentence on the variants whose spike cannot grow freely; empty where all can."""
        bounds = [f"{row.variant} {row.ceiling:.3g}" for row in self.rows if row.ceiling]
        text = "Spikes bounded by construction (what independent writes of gain 1 reach): "
        return f"{text}{', '.join(bounds)}. " if bounds else ""
