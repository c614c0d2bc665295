"""A value with its interval: of an estimate over sequences, and of a mean or coefficient over any units."""

from spikesink.records.base import Frozen


class Estimate(Frozen):
    """A value and its 95 % bootstrap interval over sequences."""

    value: float
    low: float
    high: float


class Interval(Frozen):
    """A mean or coefficient with its bootstrap interval over `n` units; null where there are too few."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def to_three_digits(value: float) -> str:
    """With its sign, to three digits and four decimals at most: +12.7, +0.0123, -0.0005, +0."""
    if abs(value) < 0.00005:
        return "+0"
    return f"{value:+.3g}" if abs(value) >= 0.0995 else f"{value:+.4f}"
