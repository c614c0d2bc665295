"""Intervals and corrected p-values: bootstrap of units (sequences, heads, seeds) or groups of them, and Holm's rule.

The draws are seeded, so that the same numbers give the same interval.
"""

from collections.abc import Callable, Sequence

import numpy as np

from spikesink.records.intervals import Estimate

RESAMPLES = 2000
CONFIDENCE = 0.95
Statistic = Callable[..., np.ndarray]
"""(samples..., axis=-1) -> value along that axis, e.g. the mean."""


def replicates(
    statistic: Statistic,
    *samples: np.ndarray,
    groups: np.ndarray | None = None,
    paired: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """The statistic of every resample, (resamples,).

    samples (unit,): drawn together if paired, else each by itself. groups (unit,): whose units are drawn together,
    since units of one group (heads of a layer) are not independent; the number of units of a resample then varies.
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        chosen = generator.integers(0, len(members), (resamples, len(members)))
        rows = [np.concatenate([members[index] for index in row]) for row in chosen]
        return np.array([statistic(*(sample[row] for sample in samples), axis=-1) for row in rows])
    drawn = None
    taken = []
    for sample in samples:
        if drawn is None or not paired:
            drawn = generator.integers(0, len(sample), (resamples, len(sample)))
        taken.append(sample[drawn])
    return statistic(*taken, axis=-1)


def bounds(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The percentile interval of replicates (resamples,); those without a value (NaN) do not count."""
    low, high = np.quantile(values[~np.isnan(values)], [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given. Holm 1979."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


LARGEST_LOSS = 700.0
"""exp of more than this is beyond float64."""


def estimate(statistic: Statistic, *samples: Sequence[float] | np.ndarray) -> Estimate:
    """The statistic of paired samples over sequences and its percentile interval; the same resamples every time."""
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    value = float(statistic(*arrays, axis=-1))
    if all(np.ptp(array) == 0 for array in arrays):
        return Estimate(value=value, low=value, high=value)
    low, high = bounds(replicates(statistic, *arrays))
    return Estimate(value=value, low=low, high=high)


def perplexity(loss_sums: np.ndarray, predictions: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(mean negative log-likelihood over all predictions); sums and numbers of predictions by sequence."""
    return np.exp(np.minimum(loss_sums.sum(axis) / predictions.sum(axis), LARGEST_LOSS))


def difference(losses: np.ndarray, baseline: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over sequences of the paired difference."""
    return (losses - baseline).mean(axis)


def share(values: np.ndarray, baseline: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean as a share of the baseline's mean; no value (NaN) where that is 0."""
    of = baseline.mean(axis)
    return values.mean(axis) / np.where(of == 0, np.nan, of)


def mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over units."""
    return values.mean(axis)
