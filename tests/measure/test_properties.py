"""Verdicts of properties near their limits, magnitudes by sequence, and how alike directions are, against loops."""

import numpy as np
import pytest
import torch

from spikesink.bootstrap import RESAMPLES
from spikesink.measure.directions import mean_cosine
from spikesink.measure.properties import SequenceMaxima, answer, limits_around
from spikesink.observer import Batch
from spikesink.records.anatomy import Interval


def test_limits_move_by_a_quarter():
    assert limits_around(0.25, at_least=False) == pytest.approx((0.2, 0.3125))
    assert limits_around(0.9, at_least=True) == pytest.approx((0.92, 0.875))


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [
        (0.1, None, "holds"),
        (0.5, None, "does not hold"),
        (0.224, None, "borderline"),
        (0.3, None, "borderline"),
        (0.1, (0.05, 0.15), "holds"),
        (0.1, (0.05, 0.26), "borderline"),
        (0.5, (0.24, 0.7), "borderline"),
        (0.5, (None, None), "does not hold"),
    ],
)
def test_an_answer_that_hangs_on_the_limit_or_the_sequences_is_borderline(value, interval, expected):
    found = mirrored = None
    if interval:
        low, high = interval
        found = Interval(value=value, low=low, high=high, n=7)
        mirrored = Interval(value=1 - value, low=high and 1 - high, high=low and 1 - low, n=7)
    assert answer(value, 0.25, found, at_least=False) == expected
    assert answer(1 - value, 0.75, mirrored, at_least=True) == expected


def test_maxima_by_sequence_without_padding():
    measure = SequenceMaxima(3)
    hidden = torch.tensor([[[1.0, -4.0], [9.0, 2.0]], [[-0.5, 0.25], [0.0, 3.0]]])
    measure.on_batch(Batch(torch.zeros(2, 2, dtype=torch.long), torch.tensor([[True, False], [True, True]]), 1))
    measure.on_residual(0, hidden * 100)
    measure.on_residual(5, hidden)
    assert {block: kept.tolist() for block, kept in measure.maxima.items()} == {5: [0.0, 4.0, 3.0]}


def test_mean_cosine_against_loops():
    vectors = np.random.default_rng(3).normal(size=(5, 7))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def mean(rows):
        pairs = [abs(vectors[i] @ vectors[j]) for a, i in enumerate(rows) for j in rows[a + 1 :] if i != j]
        return np.mean(pairs) if pairs else None

    found = mean_cosine(vectors, seed=4)
    drawn = np.random.default_rng(4).integers(0, 5, (RESAMPLES, 5)).tolist()
    means = [value for value in map(mean, drawn) if value is not None]
    assert found.value == pytest.approx(mean(range(5)), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), rel=1e-9)
    assert mean_cosine(vectors[:1]).value is None and mean_cosine(vectors[:2]).low is None
