"""The record of interventions: the dissociation table and its verdict, quantisation, the KV cache, what to do.

Ratios are fractions; blocks are 1-based; losses are in nats; intervals are bootstrap intervals over sequences.
"""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from spikesink.positions import placed
from spikesink.records.base import Frozen, Provenance, Record, Section, Timing


class Estimate(Frozen):
    """A value and its 95 % bootstrap interval over sequences."""

    value: float
    low: float
    high: float


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
    """Sink ratio as a share of the baseline's."""
    downstream_sink_ratio: Estimate | None = None
    """Sink ratio of the blocks after the one where spikes are complete: earlier ones cannot change with the spikes."""
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
    spike_tokens_kept: float | None = None
    """The same as a share of the baseline's."""
    spike_positions: dict[int, float] = Field(default_factory=dict)
    """Share of the sequences whose token at this position holds a spike; the first positions and those above 10 %."""
    cannot_answer: str | None = None
    """Why the row says nothing about the quantity that it does not aim at."""
    draws: list[Draw] = Field(default_factory=list)


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


class Dose(Frozen):
    """One intervention at several strengths, and the strengths at which what it does not aim at stays and falls."""

    name: str
    target: str
    strength: str
    """What a level means: `divided by`, or `share taken away`."""
    levels: list[InterventionRow]
    """The intervention at each level, weakest first, each followed by its controls."""
    stays_to: float | None = None
    """The other quantity stays at this level and every weaker one; None where it stays at none."""
    falls_from: float | None = None
    """It has fallen at this level and every stronger one; None where it falls at none."""
    sentence: str
    applicable: bool = True
    reason: str | None = None


class Damage(Frozen):
    """One quantised configuration."""

    name: str
    kind: str
    """attention_in, attention_out, ffn_in, down_proj, kv, weights, or all."""
    bits: int
    granularity: str
    scales: str
    """dynamic, static, or weights."""
    remedy: str | None
    blocks: list[int] | None
    """The blocks it was done in; None for all."""
    perplexity: Estimate
    loss_difference_nats: Estimate
    applicable: bool = True
    reason: str | None = None


class Quantisation(Section):
    """Simulated int8: its cost by site and by block, and with remedies."""

    weights_note: str | None = None
    """Where the weights were quantised before already, since every figure here then is on top of that."""
    baseline: Estimate | None = None
    sites: list[Damage] = Field(default_factory=list)
    """By site kind, bits and granularity, in all blocks."""
    blocks: list[Damage] = Field(default_factory=list)
    """The worst site kind, one block at a time."""
    worst_kind: str | None = None
    """The site kind that int8 per tensor damages most (keys and values apart)."""
    worst_blocks: list[int] = Field(default_factory=list)
    """Blocks whose worst site alone does a notable share of that damage, the worst first."""
    worst_modules: list[str] = Field(default_factory=list)
    """Their linear maps of the worst site kind, as `named_modules` calls them."""
    remedies: list[Damage] = Field(default_factory=list)
    spike_share: Estimate | None = None
    """Share of the per-tensor damage that is gone when spike tokens are kept in high precision."""
    rotation_error: float | None = None
    """Largest relative difference of the logits between the rotated, unquantised model and the model."""
    skipped: list[str] = Field(default_factory=list)
    """Site kinds that the model does not have, with the reason."""


class BlockDamage(Frozen):
    """What one block costs alone."""

    block: int
    loss_difference_nats: Estimate


class FormatDamage(Frozen):
    """What enters every linear map, its weights, or keys and values, in a format that models are served in."""

    name: str
    """Of `INPUTS`, `WEIGHTS` or `KV` in `spikesink.analyse.formats`."""
    kind: str
    """inputs, weights or kv."""
    element: str
    scales: str
    static: bool
    perplexity: Estimate
    loss_difference_nats: Estimate
    spike_share: Estimate | None
    """Share of the damage that is gone when spike tokens are kept in high precision; None where there are none, or
    where the damage is not told from zero."""
    lost: float
    """Share of the other tokens' values that become zero or subnormal."""
    lost_without_spikes: float | None
    """The same with spike tokens in high precision and in no scale."""
    kept_loss_difference_nats: Estimate | None = None
    """Cost with spike tokens, of caches also the positions of sinks, in high precision and in no scale."""
    scanned: bool = False
    """Whether one block at a time was tried."""
    worst_blocks: list[BlockDamage] = Field(default_factory=list)
    """Blocks that alone do a notable share of the damage, the worst first, on the first sequences."""


class Formats(Section):
    """Cost of the floating-point formats that models are served in."""

    rows: list[FormatDamage] = Field(default_factory=list)
    skipped: list[str] = Field(default_factory=list)
    """Formats that the model's sizes do not allow, with the reason."""


class Remedies(Section):
    """What enters every linear map in int8, one scale per tensor, with remedies as they are deployed."""

    rows: list[Damage] = Field(default_factory=list)
    """Dynamic and static scales; without a remedy, behind a prefix, smoothed, rotated."""
    prefix_ids: list[int] = Field(default_factory=list)
    """Token ids whose keys and values stand before every sequence, in high precision; empty where there are none."""
    prefix_text: list[str] = Field(default_factory=list)
    prefix_alone_nats: Estimate | None = None
    """What the prefix changes in the model that is not quantised."""
    spike_tokens: float | None = None
    """Spike tokens per evaluated sequence."""
    spike_tokens_behind_prefix: float | None = None
    first_token_spikes: float | None = None
    """Share of the evaluated sequences whose first token spikes."""
    first_token_spikes_behind_prefix: float | None = None
    skipped: list[str] = Field(default_factory=list)
    """Remedies that the model does not allow, with the reason."""


FORMAT_NATS = 0.05
"""What a format may cost where no budget is given, and from which it is tried in one block at a time."""

PARTS = ("quantisation", "kv_cache", "formats", "remedies")
"""Sections that say what to do, as `--which` calls them."""
UNASKED = "not asked for"
NO_REMEDIES = Remedies(applicable=False, reason=f"{UNASKED} (--which remedies)")
NO_FORMATS = Formats(applicable=False, reason=f"{UNASKED} (--which formats)")


TRUE, REASSIGNED = "true", "reassigned"
"""Positions of kept tokens: those in the text, or places in the cache."""
TOLERANCE_NATS = 0.02


class KeptSinks(Frozen):
    """Streaming-window perplexity: a cache of `window` tokens, `keep` of them kept; None is full attention."""

    window: int | None
    keep: int | None
    first: int
    """Position of the first kept token; 1 is the control that keeps as many, but not the first."""
    positions: str = TRUE
    """`true`: those in the text; `reassigned`: places in the cache, as StreamingLLM deploys it."""
    perplexity: Estimate
    loss_difference_nats: Estimate


def fewest(table: list[KeptSinks], window: int, positions: str = TRUE, tolerance_nats: float = TOLERANCE_NATS) -> int:
    """The fewest kept first tokens whose mean loss is within the tolerance of the window's best.

    Where no token is kept, positions are none.
    """
    losses = {
        row.keep: row.loss_difference_nats.value
        for row in table
        if row.window == window and row.first == 0 and row.keep is not None
        if row.positions == positions or row.keep == 0
    }
    best = min(losses.values())
    return min(keep for keep, loss in losses.items() if loss <= best + tolerance_nats)


class KvCache(Section):
    """Streaming caches of few tokens: their cost, and how many first tokens must be kept."""

    sequences: int = 0
    tokens: int = 0
    table: list[KeptSinks] = Field(default_factory=list)
    keep: int | None = None
    """The fewest kept tokens whose loss at true positions is within `tolerance_nats` of the best at the largest
    window."""
    tolerance_nats: float = 0.0
    reassigned_reason: str | None = None
    """Why there are no rows at reassigned positions."""
    note: str | None = None


PER_TOKEN, SMOOTHING, PREFIX = "one scale per token", "smoothing", "prefix"
IGNORED, KEPT = "ignored layers", "spike tokens kept"


class MeasureSet(Frozen):
    """What a model costs that is served with some measures, all of them together."""

    measures: list[str]
    """Of the five names above."""
    ignored: list[str]
    """Linear maps in high precision, as `named_modules` calls them."""
    blocks: list[int]
    """Their blocks, the worst first."""
    perplexity: Estimate
    loss_difference_nats: Estimate
    within: bool
    """Whether the upper end of the cost is within the budget."""


class Budget(Section):
    nats: float
    deployed: str
    """What is served: the format before any measure."""
    tried: list[MeasureSet] = Field(default_factory=list)
    """In the order of their runs, the first without any measure."""
    chosen: MeasureSet | None = None
    """The smallest set within the budget; None where none is."""


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
    """Token ids to put before every sequence; empty where there are none, or were not asked for."""
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


SERVED = {"inputs": "What enters linear maps costs", "weights": "Weights cost", "kv": "The KV cache costs"}
LEFT_OUT_SHARE = 0.2
"""Share of what a format costs that a block does alone, from which it is named."""


def advice(
    has_spikes: bool,
    quantised: Quantisation,
    cache: KvCache,
    budget: Budget | None = None,
    deployed: Remedies = NO_REMEDIES,
    formats: Formats = NO_FORMATS,
) -> list[str]:
    """What was measured of a budget, int8, remedies, formats and the KV cache as advice, a sentence each."""
    spikes = [] if has_spikes else ["The model has no spikes."]
    sentences = [
        *_within(budget),
        *spikes,
        *_int8(quantised),
        *_deployed(deployed),
        *_served(formats, budget),
        *_keep(cache),
    ]
    return sentences or ["Nothing was measured that says what to do."]


def _within(budget: Budget | None) -> list[str]:
    if budget is None:
        return []
    text = f"Within {budget.nats:g} nats"
    if not budget.applicable:
        return [f"{text}: not measured, since {budget.reason}."]
    plain = budget.tried[0]
    text += f" ({budget.deployed}; {_costs(plain)} without measures): "
    if budget.chosen is None:
        best = min(budget.tried, key=lambda made: made.loss_difference_nats.high)
        return [f"{text}no set of measures; the best, {_measures(best)}, costs {_costs(best)}."]
    if not budget.chosen.measures:
        return [f"{text}nothing need be done."]
    ignored = budget.chosen.ignored
    names = f" Ignore {', '.join(ignored)}." if ignored else ""
    return [f"{text}{_measures(budget.chosen)}, {_costs(budget.chosen)}.{names}"]


def _measures(made: MeasureSet) -> str:
    return " and ".join(made.measures) or "no measure"


def _costs(made: MeasureSet) -> str:
    cost = made.loss_difference_nats
    return f"{cost.value:+.3f} [{cost.low:+.3f}, {cost.high:+.3f}]"


def _int8(quantised: Quantisation) -> list[str]:
    if not quantised.applicable or quantised.baseline is None or quantised.worst_kind is None:
        return []
    kind = quantised.worst_kind
    broken = next(row for row in quantised.sites if (row.kind, row.bits, row.granularity) == (kind, 8, "tensor"))
    if broken.loss_difference_nats.low <= 0.01:
        return ["Int8 with one scale per tensor does no notable damage at any site."]
    base = quantised.baseline.value
    text = f"Int8 with one scale per tensor breaks the input of {kind}: perplexity {base:.1f} to "
    text += f"{broken.perplexity.value:.1f}"
    if quantised.worst_blocks:
        text += f", most of it in block{'s' if len(quantised.worst_blocks) > 1 else ''} "
        text += ", ".join(map(placed, sorted(quantised.worst_blocks)))
    if quantised.spike_share is not None:
        text += f"; {quantised.spike_share.value:.0%} of the damage goes when spike tokens are kept in high precision"
    options = sorted(quantised.remedies, key=lambda row: row.perplexity.value)
    return [text + ".", f"Remedies, the best first: {', '.join(map(_option, options))}."]


def _deployed(section: Remedies) -> list[str]:
    """Static scales, which break first, with each remedy."""
    rows = {row.remedy: row.loss_difference_nats for row in section.rows if row.scales == "static"}
    if None not in rows or rows[None].low <= 0.01:
        return []
    costs = sorted((cost.value, name) for name, cost in rows.items() if name)
    ways = "; with " + ", ".join(f"{name} {cost:+.2f}" for cost, name in costs) if costs else ""
    text = f"Every linear map in int8 with one static scale costs {rows[None].value:+.2f} nats{ways}."
    ids = " ".join(map(str, section.prefix_ids))
    return [text, *([f"Prefix: token {ids} before every sequence, its keys and values unrounded."] if ids else [])]


def formats_within(section: Formats, budget: Budget | None) -> dict[str, list[str]]:
    """By kind, the formats of which the upper end of the cost is at most what it may be, the cheapest first."""
    nats = _allowed(budget)
    rows = sorted(section.rows, key=lambda row: row.loss_difference_nats.value)
    kinds = dict.fromkeys(row.kind for row in section.rows)
    return {
        kind: [row.name for row in rows if row.kind == kind and row.loss_difference_nats.high <= nats] for kind in kinds
    }


def _allowed(budget: Budget | None) -> float:
    """Nats that a format may cost."""
    return FORMAT_NATS if budget is None else budget.nats


def _served(section: Formats, budget: Budget | None) -> list[str]:
    """For inputs, weights and caches, the formats that the model can be served in and those that it cannot."""
    sentences = []
    for kind, within in formats_within(section, budget).items():
        rows = {row.name: row for row in section.rows if row.kind == kind}
        text = f"{SERVED[kind]} at most {_allowed(budget):g} nats (upper end) in "
        text += ", ".join(f"{name} ({rows[name].loss_difference_nats.value:+.3f})" for name in within) or "no format"
        over = sorted(rows.keys() - within, key=lambda name: rows[name].loss_difference_nats.value)
        more = "; more in " if over else ""
        sentences.append(f"{text}{more}{', '.join(_over(rows[name]) for name in over)}.")
    return sentences


def _over(row: FormatDamage) -> str:
    """A format that costs too much, and the blocks to leave out of it first, where few do much of the damage."""
    cost = row.loss_difference_nats.value
    alone = {placed(each.block): each.loss_difference_nats.value for each in row.worst_blocks}
    worst = ", ".join(f"{block} {nats:+.3f}" for block, nats in alone.items() if nats >= LEFT_OUT_SHARE * cost)
    return f"{row.name} ({cost:+.3f}{f'; leave out first: {worst}' if worst else ''})"


def _option(row: Damage) -> str:
    what = {
        "worst blocks kept": "keep these blocks in high precision",
        "per token": PER_TOKEN,
        KEPT: "keep spike tokens in high precision",
        "spike tokens frozen": "spike tokens from one constant",
    }.get(row.remedy or "", f"{row.remedy}")
    return f"{what} ({row.perplexity.value:.1f})"


def _keep(cache: KvCache) -> list[str]:
    if not cache.applicable or cache.keep is None:
        return []
    window = max(row.window for row in cache.table if row.window)
    rows = [row for row in cache.table if row.window == window and row.first == 0 and row.positions == TRUE]
    by_keep = {row.keep: row.perplexity.value for row in rows}
    text = f"KV cache: keep {cache.keep} first token{'' if cache.keep == 1 else 's'}"
    return [f"{text} (window {window}: perplexity {by_keep[cache.keep]:.1f}, with none kept {by_keep[0]:.1f})."]
