"""The double-dissociation table: the baseline, interventions and their controls, all on the same tokens."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from spikesink.access import AccessedModel
from spikesink.analyse import bootstrap
from spikesink.analyse.passes import Progress, no_progress
from spikesink.analyse.resume import Memo
from spikesink.analyse.trial import Trial, run_trial
from spikesink.errors import DoesNotApplyError, NumericError
from spikesink.intervene import Found, Intervention
from spikesink.measure.sinks import SinkCriteria
from spikesink.records.interventions import Draw, InterventionRow

STAGE = "interventions"
REFUSALS = (DoesNotApplyError, NumericError)
"""What ends one row and not the table."""


@dataclass
class Bench:
    """A model, the tokens it is evaluated on, and what was found in it: where every pass runs."""

    accessed: AccessedModel
    ids: Tensor
    """Token ids (sequence, token), on the CPU."""
    found: Found
    memo: Memo
    sinks: SinkCriteria
    batch_size: int | None = None
    progress: Progress = no_progress
    seconds: float = 0.0
    """Spent in passes so far."""

    def trial(self, key: str, open_contexts: Callable[[], tuple], *, score_last: int | None = None) -> Trial:
        """A pass by name, run once. Raises DoesNotApplyError where a context does."""

        return self._run(key, open_contexts, self.ids, sinks=self.sinks, found=self.found, score_last=score_last)

    def loss(self, key: str, open_contexts: Callable[[], tuple], ids: Tensor | None = None) -> Trial:
        """A pass that measures nothing but the loss; `ids` in place of the bench's."""

        return self._run(f"loss/{key}", open_contexts, self.ids if ids is None else ids, loss_only=True)

    def _run(self, key: str, open_contexts: Callable[[], tuple], ids: Tensor, **options: Any) -> Trial:
        def compute() -> dict[str, list]:
            started = time.perf_counter()
            trial = run_trial(self.accessed, ids, *open_contexts(), batch_size=self.batch_size, **options)
            self.seconds += time.perf_counter() - started
            return trial.to_dict()

        return Trial(**self.memo.get(key, compute))


def dissociation_rows(bench: Bench, chosen: list[Intervention], draws: int) -> list[InterventionRow]:
    """The baseline, then every chosen intervention followed by its controls, `draws` draws each."""
    passes = 1 + sum(1 + len(made.controls) * draws for made in chosen)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        bench.progress(STAGE, done, passes)

    bench.progress(STAGE, 0, passes)
    baseline = bench.trial("baseline", tuple)
    step()
    rows = [_row(bench, "baseline", None, None, "The model as it is.", [baseline], baseline)]
    for made in chosen:
        rows.append(_real(bench, made, baseline, step))
        for control in made.controls:
            rows.append(_control(bench, made, control, baseline, draws, step))
    return rows


def _real(bench: Bench, made: Intervention, baseline: Trial, step: Callable[[], None]) -> InterventionRow:
    try:
        trial = bench.trial(made.name, lambda: (made(bench.accessed, bench.found),))
        row = _row(bench, made.name, None, made.target, made.summary, [trial], baseline)
    except REFUSALS as reason:
        row = InterventionRow(
            name=made.name,
            control_of=None,
            target=made.target,
            summary=made.summary,
            applicable=False,
            reason=str(reason),
        )
    step()
    return row


def _control(
    bench: Bench, made: Intervention, control: str, baseline: Trial, draws: int, step: Callable[[], None]
) -> InterventionRow:
    name = f"{made.name}/{control}"
    summary = f"Control of {made.name}: {control.replace('_', ' ')}, as many."
    trials = []
    reason = None
    for seed in range(1, draws + 1):
        if reason is None:
            try:
                trials.append(
                    bench.trial(
                        f"{name}/{seed}",
                        lambda seed=seed: (made(bench.accessed, bench.found, control=control, seed=seed),),
                    )
                )
            except REFUSALS as refusal:
                reason = str(refusal)
        step()
    if reason is None:
        return _row(bench, name, made.name, made.target, summary, trials, baseline)
    return InterventionRow(
        name=name, control_of=made.name, target=made.target, summary=summary, applicable=False, reason=reason
    )


def _row(
    bench: Bench,
    name: str,
    control_of: str | None,
    target: str | None,
    summary: str,
    trials: list[Trial],
    baseline: Trial,
) -> InterventionRow:
    trial = Trial.average(trials)
    reference = baseline
    if trial.predictions != baseline.predictions:
        last = trial.predictions[0]
        reference = bench.trial(f"baseline/last {last}", tuple, score_last=last)
    return InterventionRow(
        name=name,
        control_of=control_of,
        target=target,
        summary=summary,
        perplexity=bootstrap.estimate(bootstrap.perplexity, trial.loss_sums, trial.predictions),
        loss_difference_nats=bootstrap.estimate(bootstrap.difference, trial.losses, reference.losses),
        sink_ratio=bootstrap.estimate(bootstrap.mean, trial.sink_ratios),
        sink_ratio_kept=bootstrap.estimate(bootstrap.share, trial.sink_ratios, baseline.sink_ratios),
        spike=max(trial.spikes),
        sequence_spike=bootstrap.estimate(bootstrap.mean, trial.spikes),
        plateau_kept=bootstrap.estimate(bootstrap.share, trial.plateaus, baseline.plateaus),
        max_over_median=max(trial.ratios) if math.isfinite(max(trial.ratios)) else None,
        spike_tokens=float(np.mean(trial.spike_tokens)) if trial.spike_tokens else None,
        draws=[_draw(seed, drawn) for seed, drawn in enumerate(trials, start=1)] if control_of else [],
    )


def _draw(seed: int, trial: Trial) -> Draw:
    return Draw(
        seed=seed,
        perplexity=float(bootstrap.perplexity(np.array(trial.loss_sums), np.array(trial.predictions))),
        sink_ratio=float(np.mean(trial.sink_ratios)),
        spike=max(trial.spikes),
    )
