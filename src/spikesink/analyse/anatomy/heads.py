"""Every head and its sink: mass, reach, entropy, values, writes, and the direct effect on the loss. Spec section 3."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spikesink.access import AccessedModel
from spikesink.access.weights import Probe, output_projection, probe, unembedding
from spikesink.analyse.anatomy.sample import SinkTokens, sequences_with_sinks, sink_tokens, valid_mask
from spikesink.analyse.passes import Pass, Progress, Scan, Steps
from spikesink.bootstrap import holm
from spikesink.errors import DoesNotApplyError
from spikesink.measure.heads import REST_MIN, HeadMeasure, TraceSums, sink_output
from spikesink.measure.perplexity import token_losses
from spikesink.measure.states import Gather
from spikesink.measure.statistics import bootstrap_mean, clustered_p_value, rank_correlation, within_groups
from spikesink.observer import AttentionRows
from spikesink.records.intervals import Interval
from spikesink.records.sections import heads as record

PRODUCTS = 6e11
"""Multiplications spent on the logits of all heads, heads x tokens x d x vocabulary: decides the tokens of each."""
TOKENS_MIN, TOKENS_MAX = 32, 256
TESTED_HEADS, TESTED_TOKENS = 16, 768
"""Heads whose effects are tested, on so many tokens: a mean of 0.002 nats is found among effects of 0.02."""
ALPHA = 0.05
TOKENS_AT_ONCE = 256
SEED = 0
Head = tuple[int, int]
"""Block and head."""


class _SinkParts(Gather):
    """What the sink gives each head at chosen tokens, `parts[block]` (token, head, d_head), and the last residual."""

    def __init__(self, sinks: Tensor, sequences: Tensor, positions: Tensor, last_block: int) -> None:
        super().__init__(sequences, positions, residuals=[last_block])
        self.sinks = sinks
        self.parts: dict[int, Tensor] = {}

    def on_attention_rows(self, rows: AttentionRows) -> None:
        if not len(self._tokens):
            return
        sinks = self.sinks[self.batch.rows, rows.keys].to(rows.weights.device)
        part = sink_output(rows.weights, rows.value, sinks)
        self.keep(self.parts, rows.block, part.transpose(1, 2), start=rows.query_start)


class LossEffects:
    """The rise of the loss when what the sink gives one head is taken out of the last residual, at some tokens.

    `parts` observes the text, `measure` computes. projections: W_O (d, n_heads * d_head) per block.
    Raises DoesNotApplyError where writes do not simply add up.
    """

    def __init__(self, scanned: Scan, sinks: SinkTokens, seen: Probe, projections: dict[int, Tensor]) -> None:
        accessed = self.accessed = scanned.accessed
        self.sites = {sites.block: sites for sites in accessed.blocks()}
        if accessed.post_norm or any(self.sites[block].output_norm is not None for block in projections):
            raise DoesNotApplyError("A norm follows the attention output, so one head's part of a write is no summand")
        self.unembed, self.projections = unembedding(accessed, seen), projections
        sequences, positions = _queries(scanned, sinks)
        self.targets = scanned.ids[sequences, positions + 1].to(accessed.device)
        self.parts = _SinkParts(sinks.mask, sequences, positions, accessed.n_blocks)

    def measure(self, progress: Progress) -> tuple[dict[Head, Interval], record.LossTest]:
        """Mean rise in nats by head, interval over tokens; and a test of some heads on more tokens."""
        device, parts = self.accessed.device, self.parts.parts
        losses = _Losses(self.unembed, self.parts.residuals[self.accessed.n_blocks].to(device), self.targets)
        heads = [(block, head) for block in sorted(self.projections) for head in range(parts[block].shape[1])]
        few = _affordable_tokens(self.accessed, len(heads))
        tested = set(np.random.default_rng(SEED).permutation(len(heads))[:TESTED_HEADS].tolist())
        effects: dict[Head, Interval] = {}
        sink, control = [], []
        for done, (block, head) in enumerate(heads):
            progress("sink and loss", done, len(heads))
            part = parts[block][:, head].to(device)
            weight = self.projections[block][:, head * part.shape[1] : (head + 1) * part.shape[1]]
            write = part @ weight.T * self.sites[block].multiplier
            rise = losses.rise(write if done in tested else write[:few])
            effects[block, head] = bootstrap_mean(rise[:few])
            if done in tested:
                sink.append(rise)
                control.append(losses.rise(_random_like(write, done)))
        progress("sink and loss", len(heads), len(heads))
        return effects, _tested(sink, control, self.parts.sequences.numpy())


def _tested(sink: list[np.ndarray], control: list[np.ndarray], sequences: np.ndarray) -> record.LossTest:
    """sink, control: rises (token,) of each tested head; sequences (token,)."""

    def over(rises: list[np.ndarray]) -> tuple[Interval, int]:
        adjusted = holm([clustered_p_value(rise, sequences) for rise in rises])
        return bootstrap_mean(np.array([rise.mean() for rise in rises])), sum(p <= ALPHA for p in adjusted)

    (sink_nats, sink_rejected), (control_nats, control_rejected) = over(sink), over(control)
    difference = np.mean(sink, axis=0) - np.mean(control, axis=0)
    return record.LossTest(
        heads=len(sink),
        tokens=len(sequences),
        sequences=len(np.unique(sequences)),
        alpha=ALPHA,
        sink_nats=sink_nats,
        sink_rejected=sink_rejected,
        control_nats=control_nats,
        control_rejected=control_rejected,
        difference_nats=bootstrap_mean(difference, groups=sequences),
        difference_p_value=clustered_p_value(difference, sequences),
    )


class _Losses:
    """Losses of chosen tokens when something is taken out of their last residual, final (token, d)."""

    def __init__(self, unembed: Callable[[Tensor], Tensor], final: Tensor, targets: Tensor) -> None:
        self.unembed, self.final, self.targets = unembed, final, targets
        self.base = self._losses(final)

    def rise(self, part: Tensor) -> np.ndarray:
        """part (token, d) of the first tokens; rise of their loss in nats, (token,)."""
        rise = self._losses(self.final[: len(part)] - part) - self.base[: len(part)]
        return rise.double().cpu().numpy()

    def _losses(self, hidden: Tensor) -> Tensor:
        pieces = zip(hidden.split(TOKENS_AT_ONCE), self.targets[: len(hidden)].split(TOKENS_AT_ONCE), strict=True)
        with torch.inference_mode():
            return torch.cat([token_losses(self.unembed(piece)[None], targets[None])[0] for piece, targets in pieces])


def _affordable_tokens(accessed: AccessedModel, heads: int) -> int:
    products = heads * accessed.d_model * accessed.vocab_size
    return min(TOKENS_MAX, max(TOKENS_MIN, int(PRODUCTS / products)))


def _queries(scanned: Scan, sinks: SinkTokens) -> tuple[Tensor, Tensor]:
    """Sequences and positions of tokens whose next one is predicted, in random order; none is a sink token itself."""
    sequences = sequences_with_sinks(sinks)
    is_sink, valid = sinks.mask[sequences], valid_mask(scanned)[sequences]
    usable = valid & ~is_sink & (is_sink.long().cumsum(1) > 0)
    usable[:, :-1] &= valid[:, 1:]
    usable[:, -1] = False
    choice = usable.nonzero()
    choice = choice[torch.randperm(len(choice), generator=torch.Generator().manual_seed(SEED))[:TESTED_TOKENS]]
    if not len(choice):
        raise DoesNotApplyError("No token behind a sink token predicts another")
    return sequences[choice[:, 0]], choice[:, 1]


def _random_like(part: Tensor, seed: int) -> Tensor:
    """Random directions with the lengths of `part`, (token, d)."""
    drawn = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed)).to(part)
    return functional.normalize(drawn, dim=-1) * part.norm(dim=-1, keepdim=True)


CORRELATED = ("distance", "distance_by_mass", "write_norm", "entropy_nats")


def measure_heads(
    scanned: Scan, progress: Progress, *, effects: bool = True
) -> Steps[tuple[record.Heads, dict[str, np.ndarray]]]:
    """The heads over the whole text, and with `effects` the loss at some of its tokens, in one pass."""
    sinks = sink_tokens(scanned)
    seen = probe(scanned.accessed)
    projections, writes_reason = _projections(scanned, seen)
    measure = HeadMeasure(sinks.mask, {block: _gram(weight, seen, block) for block, weight in projections.items()})
    losses, loss_reason = None, writes_reason if effects else "not asked for"
    if effects and not writes_reason:
        try:
            losses = LossEffects(scanned, sinks, seen, projections)
        except DoesNotApplyError as reason:
            loss_reason = str(reason)
    yield Pass([measure, *([losses.parts] if losses else [])])
    rises, loss_test = losses.measure(progress) if losses else ({}, None)
    heads = _traces(measure, rises)
    section = record.Heads(
        sink_tokens=rule(sinks),
        queries=int(next(iter(measure.blocks.values())).count),
        uniform_distance={b: sums.uniform / max(sums.count, 1) for b, sums in sorted(measure.blocks.items())},
        heads=heads,
        correlations=[_correlation(heads, other) for other in CORRELATED],
        modulation=[_modulation(heads, other) for other in ("write", "distance")],
        loss_tokens=max((effect.n for effect in rises.values()), default=0),
        loss_test=loss_test,
        writes_reason=writes_reason,
        loss_reason=loss_reason,
    )
    return section, {}


def rule(sinks: SinkTokens) -> record.SinkTokenRule:
    """The rule for sink tokens and how many there are, as it stands in the record."""
    return record.SinkTokenRule(
        importance_min=sinks.importance_min, heads_min=sinks.heads_min, tokens=int(sinks.mask.sum())
    )


def _projections(scanned: Scan, seen: Probe) -> tuple[dict[int, Tensor], str | None]:
    """W_O of every attention block, or the reason why some block has none that is known."""
    projections = {}
    for block in sorted(seen.outputs):
        try:
            projections[block] = output_projection(scanned.accessed, block, seen)[0]
        except DoesNotApplyError as reason:
            return {}, str(reason)
    return projections, None


def _gram(weight: Tensor, seen: Probe, block: int) -> Tensor:
    """W_O^T W_O of each head, (head, d_head, d_head)."""
    per_head = weight.unflatten(1, (seen.outputs[block].shape[1], -1)).transpose(0, 1)
    return per_head.mT @ per_head


def _traces(measure: HeadMeasure, effects: dict[tuple[int, int], Interval]) -> list[record.HeadTrace]:
    traces = []
    for block, sums in sorted(measure.blocks.items()):
        values = measure.values[block]
        for head in range(sums.heads):
            mass = sums.mean("mass", head) or 0.0
            reach_mass = sums.mean("reach_mass", head) or 0.0
            traces.append(
                record.HeadTrace(
                    block=block,
                    head=head,
                    sink_mass=mass,
                    distance=sums.mean("distance", head),
                    distance_queries=int(sums.counts["distance"][head]),
                    distance_by_mass=reach_mass / left if (left := 1 - mass) > REST_MIN else None,
                    entropy_nats=sums.mean("entropy", head) or 0.0,
                    value_norm_sink=values.mean(0, head),
                    value_norm_other=values.mean(1, head),
                    write_norm=sums.mean("write", head),
                    write_norm_without=sums.mean("without", head),
                    write_norm_renormalised=sums.mean("renormalised", head),
                    renormalised_queries=int(sums.counts["renormalised"][head]) if sums.gram is not None else None,
                    mass_with_write=_with_mass(sums, "write", head),
                    mass_with_distance=_with_mass(sums, "distance", head),
                    loss_effect_nats=effects.get((block, head)),
                )
            )
    return traces


def _with_mass(sums: TraceSums, other: str, head: int) -> float | None:
    return sums.with_mass[other].correlation(head) if other in sums.with_mass else None


def _modulation(heads: list[record.HeadTrace], other: str) -> record.Modulation:
    """Over heads, with an interval over layers."""
    values = np.array([_number(getattr(head, f"mass_with_{other}")) for head in heads])
    known = values[np.isfinite(values)]
    return record.Modulation(
        other=other,
        mean=bootstrap_mean(values, groups=np.array([head.block for head in heads])),
        negative_share=float((known < 0).mean()) if len(known) else None,
    )


def _correlation(heads: list[record.HeadTrace], other: str) -> record.HeadCorrelation:
    columns = [np.array([_number(getattr(head, name)) for head in heads]) for name in ("sink_mass", other)]
    kept = np.isfinite(columns[0]) & np.isfinite(columns[1])
    blocks = np.array([head.block for head in heads])[kept]
    first, second = (column[kept] for column in columns)
    return record.HeadCorrelation(
        one="sink_mass",
        other=other,
        over_heads=rank_correlation(first, second, blocks),
        within_layers=rank_correlation(within_groups(first, blocks), within_groups(second, blocks), blocks),
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
