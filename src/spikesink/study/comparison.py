"""Two samples of seeds compared on the scale where they are additive: a difference, its interval, what it decides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

UNBOUNDED = float(np.finfo(np.float32).max)
SEEDS_MAX = 1000
POWER = 0.9


@dataclass(frozen=True)
class Difference:
    """Mean of one sample minus that of another, with what a Welch test needs."""

    value: float
    error: float
    """Standard error; 0 where neither sample has a spread, NaN where one has a single value."""
    degrees: float
    spread: float
    """Pooled standard deviation."""
    counts: tuple[int, int]

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided, by Student's t; without bounds where a sample has a single value."""
        if math.isnan(self.error):
            return -math.inf, math.inf
        half = float(stats.t.ppf((1 + confidence) / 2, self.degrees)) * self.error if self.error else 0.0
        return self.value - half, self.value + half

    def p_below(self, limit: float) -> float:
        """One-sided p of 'the difference is at least the limit'."""
        if math.isnan(self.error):
            return 1.0
        if self.error == 0:
            return 0.0 if self.value < limit else 1.0
        return float(stats.t.cdf((self.value - limit) / self.error, self.degrees))

    def p_above(self, limit: float) -> float:
        """One-sided p of 'the difference is at most the limit'."""
        if math.isnan(self.error):
            return 1.0
        if self.error == 0:
            return 0.0 if self.value > limit else 1.0
        return float(stats.t.sf((self.value - limit) / self.error, self.degrees))

    def size(self) -> float | None:
        """Hedges' g: in pooled standard deviations, corrected for small samples."""
        if not self.spread > 0:
            return None
        degrees = sum(self.counts) - 2
        return self.value / self.spread * (1 - 3 / (4 * degrees - 1))

    def seeds_needed(self, limits: Sequence[float], confidence: float) -> int | None:
        """Seeds of each sample at which the nearest limit would be cleared in nine of ten studies like this one."""
        distance = min(abs(self.value - limit) for limit in limits)
        if not self.spread >= 0 or distance == 0:
            return None
        for seeds in range(2, SEEDS_MAX + 1):
            error = self.spread * math.sqrt(2 / seeds)
            degrees = 2 * seeds - 2
            if (stats.t.ppf((1 + confidence) / 2, degrees) + stats.t.ppf(POWER, degrees)) * error <= distance:
                return seeds
        return None


def welch(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Of two samples, unequal variances allowed. Welch 1947. Raises ValueError for an empty one."""
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    counts = (len(ours), len(theirs))
    if not all(counts):
        raise ValueError(f"no difference of {values} and {baseline}")
    value = float(ours.mean() - theirs.mean())
    if min(counts) < 2:
        return Difference(value, math.nan, math.nan, math.nan, counts)
    parts = [ours.var(ddof=1) / counts[0], theirs.var(ddof=1) / counts[1]]
    total = sum(parts)
    shares = sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    pooled = ((counts[0] - 1) * ours.var(ddof=1) + (counts[1] - 1) * theirs.var(ddof=1)) / (sum(counts) - 2)
    # Equal values differ in the last bit of their mean.
    negligible = total <= (1e-12 * max(1.0, abs(value))) ** 2
    return Difference(
        value, 0.0 if negligible else math.sqrt(total), 1.0 if negligible else total**2 / shares,
        0.0 if negligible else math.sqrt(pooled), counts,
    )  # fmt: skip


@dataclass(frozen=True)
class LogScale:
    """Magnitudes, ratios and perplexities: a difference is the log of a ratio. `least` counts as 0, and what lies less
    than `floor` above it as that."""

    floor: float = float(np.finfo(np.float64).tiny)
    least: float = 0.0

    def to(self, values: Sequence[float]) -> list[float]:
        return np.log(np.maximum(np.asarray(values, dtype=np.float64) - self.least, self.floor)).tolist()

    def ratio(self, difference: float, baseline: float) -> float:
        """The variant over the baseline at this difference; `baseline` is the baseline's mean on this scale."""
        return min(math.exp(difference), UNBOUNDED) if difference < 700 else UNBOUNDED

    def limit(self, ratio: float, baseline: float) -> float:
        """The difference at which the variant is this share of the baseline."""
        return math.log(ratio)


@dataclass(frozen=True)
class LogitScale:
    """Shares between a floor and 1: `least` counts as 0 (uniform attention), and below `floor` all is as good as 0."""

    floor: float
    least: float = 0.0

    def to(self, values: Sequence[float]) -> list[float]:
        shares = (np.asarray(values, dtype=np.float64) - self.least) / max(1 - self.least, self.floor)
        return special.logit(np.clip(shares, self.floor, 1 - self.floor)).tolist()

    def ratio(self, difference: float, baseline: float) -> float:
        return float(special.expit(baseline + difference) / special.expit(baseline))

    def limit(self, ratio: float, baseline: float) -> float:
        return float(special.logit(min(ratio * special.expit(baseline), 1 - self.floor)) - baseline)


Scale = LogScale | LogitScale
