"""The records of a study: one small file per (variant, seed) cell, and the table and verdicts made from them.

Ratios are fractions; losses are in nats; intervals are bootstrap intervals over seeds.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from spikesink.records.base import Frozen, JsonRecord, Provenance, Timing

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
    """Share of the tokens that hold a spike; 0 without spikes."""
    massive_count: int
    held_out_loss_nats: float


class Curve(Frozen):
    """One quantity while training."""

    step: list[int]
    value: list[float]


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


class Effect(Frozen):
    """A variant's mean over the baseline's, with its interval, and what that is called under the rules."""

    metric: str
    ratio: float
    low: float
    high: float
    separate: bool
    """No seed of the one lies among the seeds of the other."""
    change: Literal["falls", "stays", "rises", "unclear"]


class VariantVerdict(Frozen):
    variant: str
    verdict: str
    """spikes go, sinks stay; sinks go, spikes stay; both go; neither goes; undecided; diverged."""
    sentence: str
    effects: list[Effect]


class ClaimVerdict(Frozen):
    """One claim of the paper, and what this study says about it."""

    claim: int
    text: str
    verdict: Literal["supported", "contradicted", "undecided", "not tested"]
    evidence: str


class CellCurves(Frozen):
    variant: str
    seed: int
    curves: dict[str, Curve]


class StudyRecord(JsonRecord):
    """The table, the verdicts with the rules behind them, and the learning curves."""

    kind: Literal["study"] = "study"
    command: ClassVar[str] = "spikesink study"

    study: str
    preset: str
    about: str
    baseline: str
    rows: list[VariantRow]
    verdicts: list[VariantVerdict]
    claims: list[ClaimVerdict]
    rules: dict[str, float]
    errors: list[str]
    """One line for each cell that diverged or failed."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Variants of the grid that the base recipe is too small for, and why; earlier files do not say."""
    cells: list[CellCurves]
    provenance: Provenance
    timing: Timing
