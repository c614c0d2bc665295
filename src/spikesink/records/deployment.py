"""What quantisation, served formats, remedies and a small KV cache cost a model, and what keeps it in a budget."""

from pydantic import Field

from spikesink.records.base import Frozen, Section
from spikesink.records.intervals import Estimate


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
    """Blocks whose worst site alone does a notable share of that damage, the worst first; none where that is little."""
    worst_modules: list[str] = Field(default_factory=list)
    """Their linear maps of the worst site kind, as `named_modules` calls them."""
    remedies: list[Damage] = Field(default_factory=list)
    spike_share: Estimate | None = None
    """Share of the per-tensor damage that is gone when spike tokens are kept in high precision; None where there are
    none, or where the damage is not told from zero."""
    rotation_error: float | None = None
    """Largest relative difference of the logits between the rotated, unquantised model and the model."""
    skipped: list[str] = Field(default_factory=list)
    """Kinds of linear maps that the model has not singly, in some blocks or any, with the reason: not measured."""

    def int8(self) -> dict[tuple[str, str], Damage]:
        """Int8 with dynamic scales in all blocks, by site kind and granularity."""
        return {(row.kind, row.granularity): row for row in self.sites if (row.bits, row.scales) == (8, "dynamic")}


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
    missing: list[str] = Field(default_factory=list)
    """Kinds of linear maps that were not measured, as `Quantisation.skipped`."""


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
    missing: list[str] = Field(default_factory=list)
    """Kinds of linear maps that were not measured, as `Quantisation.skipped`."""


NOTABLE_NATS = 0.01
"""What int8 costs at least, lower end, where something is to be done about it."""


def is_damage(cost: Estimate) -> bool:
    """Whether int8 costs enough that something is to be done about it."""
    return cost.low > NOTABLE_NATS


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
