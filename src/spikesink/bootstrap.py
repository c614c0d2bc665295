"""The bootstrap behind every interval: units (sequences, heads, seeds) or whole groups of them, drawn with replacement.

The draws are seeded, so that the same numbers give the same interval.
"""

from collections.abc import Callable

import numpy as np

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
