"""The double-dissociation table: the baseline, interventions and their controls, all on the same tokens."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from spikesink import bootstrap
from spikesink.analyse.evaluation import Evaluation, Evaluator
from spikesink.errors import DoesNotApplyError, NumericError
from spikesink.intervene import INTERVENTIONS, Intervention
from spikesink.intervene.base import Context
from spikesink.positions import placed
from spikesink.records.intervals import Estimate
from spikesink.records.interventions import Draw, InterventionRow

STAGE = "interventions"
LISTED_POSITIONS = 4
REFUSALS = (DoesNotApplyError, NumericError)
"""What ends one row and not the table."""


def dissociation_rows(evaluator: Evaluator, chosen: list[Intervention], draws: int) -> list[InterventionRow]:
    """The baseline, then every chosen intervention followed by its controls, `draws` draws each."""
    step = evaluator.steps(STAGE, 1 + sum(1 + len(made.controls) * draws for made in chosen))
    baseline = evaluator.baseline()
    step()
    description = {"name": "baseline", "control_of": None, "target": None, "summary": "The model as it is."}
    rows = [_row(evaluator, [baseline], baseline, description)]
    for made in chosen:
        rows.append(intervention_row(evaluator, made, baseline, step))
        rows += [control_row(evaluator, made, control, baseline, draws, step) for control in made.controls]
    return rows


def intervention_row(
    evaluator: Evaluator,
    made: Intervention,
    baseline: Evaluation,
    step: Callable[[], None],
    strength: float | None = None,
) -> InterventionRow:
    """The row of one intervention, at a strength where one is given."""
    description: dict[str, Any] = {"name": made.name, "control_of": None, "target": made.edits, "summary": made.summary}
    try:
        context = made(evaluator.accessed, evaluator.targets, **_at(strength))
        result = _measured(evaluator, made, _key(made.name, strength), context)
        row = _row(evaluator, [result], baseline, description, strength)
    except REFUSALS as reason:
        row = InterventionRow(**description, applicable=False, reason=str(reason), strength=strength)
    step()
    return row


def _measured(evaluator: Evaluator, made: Intervention, key: str, context: Context) -> Evaluation:
    return evaluator.measure(key, context, untouched=made.untouched_layers(evaluator.targets))


def _at(strength: float | None) -> dict[str, Any]:
    return {} if strength is None else {"strength": strength}


def _key(name: str, strength: float | None) -> str:
    return name if strength is None else f"{name} at {strength:g}"


def level_row(evaluator: Evaluator, made: Intervention, result: Evaluation, strength: float) -> InterventionRow:
    """The row of an intervention whose strength changes nothing: the baseline's."""
    description = {"name": made.name, "control_of": None, "target": made.edits, "summary": made.summary}
    return _row(evaluator, [result], result, description, strength)


def control_row(
    evaluator: Evaluator,
    made: Intervention,
    control: str,
    baseline: Evaluation,
    draws: int,
    step: Callable[[], None],
    strength: float | None = None,
) -> InterventionRow:
    """The row of one of its controls, the mean over draws."""
    name = f"{made.name}/{control}"
    summary = f"Control of {made.name}: {control.replace('_', ' ')}, as many."
    description: dict[str, Any] = {"name": name, "control_of": made.name, "target": made.edits, "summary": summary}
    results: list[Evaluation] = []
    reason = None
    for seed in range(1, draws + 1):
        if reason is None:
            try:
                context = made(evaluator.accessed, evaluator.targets, control=control, seed=seed, **_at(strength))
                results.append(_measured(evaluator, made, f"{_key(name, strength)}/{seed}", context))
            except REFUSALS as refusal:
                reason = str(refusal)
        step()
    if reason is not None:
        return InterventionRow(**description, applicable=False, reason=reason, strength=strength)
    return _row(evaluator, results, baseline, description, strength)


def _row(
    evaluator: Evaluator,
    results: list[Evaluation],
    baseline: Evaluation,
    description: dict[str, Any],
    strength: float | None = None,
) -> InterventionRow:
    """The row of one pass, or of the mean over the draws of a control."""
    result = Evaluation.average(results)
    reference = baseline
    if result.predictions != baseline.predictions:
        last = result.predictions[0]
        reference = evaluator.measure(f"baseline/last {last}", score_last=last)
    return InterventionRow(
        **description,
        strength=strength,
        perplexity=result.perplexity,
        loss_difference_nats=result.cost(reference),
        sink_ratio=bootstrap.estimate(bootstrap.mean, result.sink_ratios),
        sink_ratio_kept=_kept(result.sink_ratios, baseline.sink_ratios),
        downstream_sink_ratio=_mean(result.downstream_ratios),
        downstream_sink_ratio_kept=_kept(result.downstream_ratios, baseline.downstream_ratios),
        spike=max(result.spikes),
        sequence_spike=bootstrap.estimate(bootstrap.mean, result.spikes),
        plateau_kept=_kept(result.plateaus, baseline.plateaus),
        plateau_ratio_kept=_kept(result.plateau_ratios, baseline.plateau_ratios),
        norm_ratio=_mean(result.norm_ratios),
        max_over_median=max(result.ratios) if math.isfinite(max(result.ratios)) else None,
        spike_tokens=float(np.mean(result.spike_tokens)) if result.spike_tokens else None,
        spike_tokens_kept=_kept(result.spike_tokens, baseline.spike_tokens),
        spike_positions=_positions(result),
        cannot_answer=_cannot_answer(evaluator, description, baseline),
        draws=[_draw(seed, drawn) for seed, drawn in enumerate(results, start=1)] if description["control_of"] else [],
    )


def _mean(values: list[float]) -> Estimate | None:
    """None where there is nothing to estimate: no spikes, or no block after theirs that attends."""
    return bootstrap.estimate(bootstrap.mean, values) if values else None


def _kept(values: list[float], baseline: list[float]) -> Estimate | None:
    """As a share of the baseline's; None where that is 0, of which nothing is a share."""
    return bootstrap.estimate(bootstrap.share, values, baseline) if any(baseline) else None


def _positions(result: Evaluation) -> dict[int, float]:
    shares = enumerate(result.spike_positions)
    return {position: share for position, share in shares if position < LISTED_POSITIONS or share > 0.1}


def _cannot_answer(evaluator: Evaluator, description: dict[str, Any], baseline: Evaluation) -> str | None:
    """Text without spikes, or without sinks behind them, says nothing about the two; nor do sinks edited only behind
    the block that wrote the spikes say whether spikes need them."""
    made = INTERVENTIONS.get(description["control_of"] or description["name"])
    if made is None or made.edits not in ("spikes", "sinks") or not evaluator.targets.has_spikes:
        return None
    if not any(baseline.spike_tokens):
        return "no token of the evaluated sequences spikes"
    place = placed(evaluator.targets.edit_block)
    if made.edits == "spikes":
        if evaluator.targets.attention_behind == 0:
            return f"no attention block stands behind block {place}, where the spikes are complete"
        return None if any(baseline.downstream_ratios) else "no head behind the spikes sinks on the evaluated sequences"
    if not any(baseline.sink_ratios):
        return "no head sinks on the evaluated sequences"
    if made.reach == "start":
        return None
    return f"it edits sinks after block {place}, when the spikes are written"


def _draw(seed: int, drawn: Evaluation) -> Draw:
    return Draw(
        seed=seed,
        perplexity=float(bootstrap.perplexity(np.array(drawn.loss_sums), np.array(drawn.predictions))),
        sink_ratio=float(np.mean(drawn.sink_ratios)),
        spike=max(drawn.spikes),
    )
