"""Intervals and rank correlations that the anatomy measures share; every draw has a fixed seed."""

import numpy as np

from spikesink.records.anatomy import Interval

RESAMPLES = 1000
CONFIDENCE = 0.95


def bootstrap_mean(values: np.ndarray, weights: np.ndarray | None = None, seed: int = 0) -> Interval:
    """Mean over units with its percentile bootstrap interval. values, weights (unit,): weights are e.g. token counts.

    Units with weight 0 or a value that is not finite do not count; the interval is None for fewer than two.
    """
    weights = np.ones(len(values)) if weights is None else weights
    kept = (weights > 0) & np.isfinite(values)
    values, weights = values[kept].astype(np.float64), weights[kept].astype(np.float64)
    if len(values) == 0:
        return Interval(value=None, low=None, high=None, n=0)
    mean = float((values * weights).sum() / weights.sum())
    if len(values) < 2:
        return Interval(value=mean, low=None, high=None, n=1)
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    means = (values[drawn] * weights[drawn]).sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value=mean, low=float(low), high=float(high), n=len(values))


def rank_correlation(one: np.ndarray, other: np.ndarray, seed: int = 0) -> Interval:
    """Spearman's rho of two (unit,) arrays with its percentile bootstrap interval over units.

    None for fewer than three units or where one is constant. Ranks of ties are averaged.
    """
    from scipy.stats import rankdata

    kept = np.isfinite(one) & np.isfinite(other)
    one, other = one[kept], other[kept]
    value = _correlation(rankdata(one), rankdata(other)) if len(one) >= 3 else None
    if value is None:
        return Interval(value=None, low=None, high=None, n=len(one))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(one), len(one))
        resampled = _correlation(rankdata(one[drawn]), rankdata(other[drawn]))
        if resampled is not None:
            found.append(resampled)
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value=value, low=float(low), high=float(high), n=len(one))


def within_groups(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values minus the mean of their group, both (unit,): what is left when depth, say, is taken out."""
    centred = values.astype(np.float64).copy()
    for group in np.unique(groups):
        members = groups == group
        centred[members] -= centred[members].mean()
    return centred


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum() / scale) if scale > 0 else None
