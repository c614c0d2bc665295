"""The rules of version 1, as they were before the runs of November 2026: kept so that both verdicts can be read.

A variant's mean is compared with the baseline's, as a ratio with a percentile bootstrap interval over seeds: at three
seeds it covers 79 to 85 % instead of 95, and its band of a factor of 2 both ways nothing noisy can meet.
"""

from dataclasses import dataclass

import numpy as np

from spikesink.bootstrap import replicates
from spikesink.records.study import Change, Effect, VariantRow

RESAMPLES = 10_000


@dataclass(frozen=True)
class FirstRules:
    """Thresholds of the verdict."""

    fall_factor: float = 3.0
    """Falls: the whole interval of the ratio lies below 1 / fall_factor, and no seed lies among the baseline's."""
    band_factor: float = 2.0
    """Stays: the whole interval lies between 1 / band_factor and band_factor."""
    seeds_min: int = 3
    """Fewer finished seeds, of the variant or the baseline, decide nothing."""
    baseline_sink_ratio_min: float = 0.05
    """A baseline below has no sinks that could fall or stay."""
    confidence: float = 0.95


SPIKES_GO, SINKS_GO, BOTH_GO = "spikes go, sinks stay", "sinks go, spikes stay", "both go"
NEITHER, UNDECIDED, DIVERGED = "neither goes", "undecided", "diverged"


def effect(metric: str, values: list[float], baseline: list[float], rules: FirstRules) -> Effect:
    """The variant's mean over the baseline's, with a percentile bootstrap interval over seeds of both.

    Raises ValueError where a list is empty or the baseline's mean is not positive.
    """
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if not len(ours) or not len(theirs) or theirs.mean() <= 0:
        raise ValueError(f"no ratio of {values} to {baseline}")
    # A resample of zeros alone says: any ratio.
    ratios = replicates(_ratio_of_means, ours, theirs, paired=False, resamples=RESAMPLES)
    tail = (1 - rules.confidence) / 2
    # Order statistics: interpolating between infinities would give NaN.
    low, high = np.quantile(ratios, [tail, 1 - tail], method="inverted_cdf")
    separate = bool(ours.max() < theirs.min() or ours.min() > theirs.max())
    ratio, bounds = float(ours.mean() / theirs.mean()), (float(low), min(float(high), float(np.finfo(np.float32).max)))
    return Effect(
        metric=metric, ratio=ratio, low=bounds[0], high=bounds[1], separate=separate,
        change=_change(*bounds, separate=separate, rules=rules),
    )  # fmt: skip


def _ratio_of_means(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
    above, below = ours.mean(axis), theirs.mean(axis)
    return np.divide(above, below, out=np.full(above.shape, np.inf), where=below > 0)


def _change(low: float, high: float, *, separate: bool, rules: FirstRules) -> Change:
    if high < 1 / rules.fall_factor and separate:
        return "falls"
    if low > rules.fall_factor and separate:
        return "rises"
    return "stays" if low >= 1 / rules.band_factor and high <= rules.band_factor else "unclear"


def verdict(row: VariantRow, baseline: VariantRow, rules: FirstRules = FirstRules()) -> str:
    """What version 1 says of a variant."""
    if row.diverged and not row.seeds:
        return DIVERGED
    seeds = min(len(row.seeds), len(baseline.seeds))
    if seeds < rules.seeds_min or not np.mean(baseline.values["sink_ratio"]) >= rules.baseline_sink_ratio_min:
        return UNDECIDED
    effects = {
        metric: effect(metric, row.values[metric], baseline.values[metric], rules)
        for metric in ("spike", "sink_ratio", "first_token_importance")
        if row.values.get(metric) and float(np.mean(baseline.values.get(metric, [0.0]))) > 0
    }
    spikes, sinks = effects["spike"].change, _sinks_change(effects)
    known = {("falls", "stays"): SPIKES_GO, ("stays", "falls"): SINKS_GO, ("falls", "falls"): BOTH_GO}
    known |= {("rises", "falls"): SINKS_GO, ("falls", "rises"): SPIKES_GO}
    return UNDECIDED if "unclear" in (spikes, sinks) else known.get((spikes, sinks), NEITHER)


def _sinks_change(effects: dict[str, Effect]) -> str:
    """By the sink ratio; where its interval is too wide, by the first token's importance, which may only say stays."""
    ratio = effects["sink_ratio"].change
    importance = effects.get("first_token_importance")
    if ratio == "unclear" and importance is not None and importance.change == "stays":
        return "stays"
    return ratio
