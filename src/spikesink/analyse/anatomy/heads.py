"""Every head and its sink: mass, reach, entropy, values, writes, and the direct effect on the loss. Spec section 3."""

import numpy as np
from torch import Tensor

from spikesink.access.weights import Probe, output_projection, probe
from spikesink.analyse.anatomy.sink_loss import loss_effects
from spikesink.analyse.anatomy.sink_tokens import SinkTokens, sink_tokens
from spikesink.analyse.passes import Progress, Scan
from spikesink.errors import DoesNotApplyError
from spikesink.measure.heads import REST_MIN, HeadMeasure, TraceSums
from spikesink.measure.statistics import bootstrap_mean, rank_correlation, within_groups
from spikesink.records import anatomy as record

CORRELATED = ("distance", "distance_by_mass", "write_norm", "entropy_nats")


def measure_heads(scanned: Scan, progress: Progress) -> tuple[record.Heads, dict[str, np.ndarray]]:
    """Two passes: the heads over the whole text, the loss on some of it."""
    found = sink_tokens(scanned, progress)
    seen = probe(scanned.accessed)
    projections, writes_reason = _projections(scanned, seen)
    measure = HeadMeasure(found.mask, {block: _gram(weight, seen, block) for block, weight in projections.items()})
    scanned.replay([measure], "heads", progress)
    effects, loss_test, loss_reason = {}, None, writes_reason
    if not writes_reason:
        try:
            effects, loss_test = loss_effects(scanned, found, seen, projections, progress)
        except DoesNotApplyError as reason:
            loss_reason = str(reason)
    heads = _traces(measure, effects)
    section = record.Heads(
        sink_tokens=rule(found),
        queries=int(next(iter(measure.blocks.values())).count),
        uniform_distance={b: sums.uniform / max(sums.count, 1) for b, sums in sorted(measure.blocks.items())},
        heads=heads,
        correlations=[_correlation(heads, "sink_mass", other) for other in CORRELATED],
        modulation=[_modulation(heads, other) for other in ("write", "distance")],
        loss_tokens=max((effect.n for effect in effects.values()), default=0),
        loss_test=loss_test,
        writes_reason=writes_reason,
        loss_reason=loss_reason,
    )
    return section, {}


def rule(found: SinkTokens) -> record.SinkTokenRule:
    return record.SinkTokenRule(
        importance_min=found.importance_min, heads_min=found.heads_min, tokens=int(found.mask.sum())
    )


def _projections(scanned: Scan, seen: Probe) -> tuple[dict[int, Tensor], str | None]:
    """W_O of every attention block, or the reason why some block has none that is known."""
    found = {}
    for block in sorted(seen.outputs):
        try:
            found[block] = output_projection(scanned.accessed, block, seen)[0]
        except DoesNotApplyError as reason:
            return {}, str(reason)
    return found, None


def _gram(weight: Tensor, seen: Probe, block: int) -> Tensor:
    """W_O^T W_O of each head, (head, d_head, d_head)."""
    per_head = weight.unflatten(1, (seen.outputs[block].shape[1], -1)).transpose(0, 1)
    return per_head.mT @ per_head


def _traces(measure: HeadMeasure, effects: dict[tuple[int, int], record.Interval]) -> list[record.HeadTrace]:
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


def _correlation(heads: list[record.HeadTrace], one: str, other: str) -> record.HeadCorrelation:
    columns = [np.array([_number(getattr(head, name)) for head in heads]) for name in (one, other)]
    kept = np.isfinite(columns[0]) & np.isfinite(columns[1])
    blocks = np.array([head.block for head in heads])[kept]
    first, second = (column[kept] for column in columns)
    return record.HeadCorrelation(
        one=one,
        other=other,
        over_heads=rank_correlation(first, second, blocks),
        within_layers=rank_correlation(within_groups(first, blocks), within_groups(second, blocks), blocks),
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
