"""Means and rank correlations with intervals, which the anatomy measures share."""

import numpy as np

from spikesink.bootstrap import bounds, replicates
from spikesink.records.intervals import Interval


def bootstrap_mean(
    values: np.ndarray, weights: np.ndarray | None = None, groups: np.ndarray | None = None, seed: int = 0
) -> Interval:
    """Mean over units with its percentile bootstrap interval. values, weights (unit,): weights are e.g. token counts.

    Units with weight 0 or a value that is not finite do not count; the interval is None for fewer than two (groups).
    """
    weights = np.ones(len(values)) if weights is None else weights
    kept = (weights > 0) & np.isfinite(values)
    samples = values[kept].astype(np.float64), weights[kept].astype(np.float64)
    if not kept.any():
        return Interval(value=None, low=None, high=None, n=0)
    groups = None if groups is None else groups[kept]
    low = high = None
    if len(samples[0] if groups is None else np.unique(groups)) >= 2:
        low, high = bounds(replicates(_weighted_mean, *samples, groups=groups, seed=seed))
    return Interval(value=float(_weighted_mean(*samples)), low=low, high=high, n=int(kept.sum()))


def rank_correlation(one: np.ndarray, other: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> Interval:
    """Spearman's rho of two (unit,) arrays with its percentile bootstrap interval over units, or groups of them.

    None for fewer than three units or where one is constant; the interval is None for one group. Ranks of ties are
    averaged.
    """
    kept = np.isfinite(one) & np.isfinite(other)
    one, other, groups = one[kept], other[kept], None if groups is None else groups[kept]
    value = float(spearman(one, other)) if len(one) >= 3 else np.nan
    if np.isnan(value):
        return Interval(value=None, low=None, high=None, n=len(one))
    low = high = None
    if groups is None or len(np.unique(groups)) >= 2:
        low, high = bounds(replicates(spearman, one, other, groups=groups, seed=seed))
    return Interval(value=value, low=low, high=high, n=len(one))


def spearman(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation of ranks along an axis, ties averaged; NaN where one is constant."""
    from scipy.stats import rankdata

    one, other = (rankdata(sample, axis=axis) for sample in (one, other))
    one, other = (ranks - ranks.mean(axis, keepdims=True) for ranks in (one, other))
    scale = np.sqrt((one**2).sum(axis) * (other**2).sum(axis))
    return np.divide((one * other).sum(axis), scale, out=np.full_like(scale, np.nan), where=scale > 0)


def clustered_p_value(values: np.ndarray, clusters: np.ndarray) -> float:
    """Two-sided p-value that the mean of values (unit,) is zero, units of one cluster not independent; 1 for one.

    Student's t with clusters - 1 degrees of freedom on the cluster-robust standard error (Liang & Zeger 1986).
    """
    from scipy.stats import t

    _, index = np.unique(clusters, return_inverse=True)
    count = int(index.max()) + 1
    mean = values.mean()
    sums = np.bincount(index, weights=values - mean)
    error = np.sqrt((sums**2).sum() * count / max(count - 1, 1)) / len(values)
    if count < 2 or error == 0:
        return 1.0
    return float(2 * t.sf(abs(mean) / error, count - 1))


def within_groups(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values minus the mean of their group, both (unit,): what is left when depth, say, is taken out."""
    centred = values.astype(np.float64).copy()
    for group in np.unique(groups):
        members = groups == group
        centred[members] -= centred[members].mean()
    return centred


def _weighted_mean(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray((values * weights).sum(axis) / weights.sum(axis))
