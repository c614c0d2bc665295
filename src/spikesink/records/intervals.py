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
