"""Estimates with bootstrap intervals over sequences, and what is estimated."""

from collections.abc import Sequence

import numpy as np

from spikesink.bootstrap import Statistic as Statistic
from spikesink.bootstrap import bounds, replicates
from spikesink.records.interventions import Estimate

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
    """Mean as a share of the baseline's mean."""
    return values.mean(axis) / np.maximum(baseline.mean(axis), np.finfo(np.float64).tiny)


def mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.mean(axis)
