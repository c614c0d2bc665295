"""What the rooms share: ranks without padding, one bootstrap, the observers' base."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from spikesink.access.protocol import listeners
from spikesink.bootstrap import RESAMPLES, bounds, replicates
from spikesink.observer import Observer, full_batch
from spikesink.positions import first_half, ranks


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_the_first_half_counts_real_tokens(kind):
    valid = kind([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]]) == 1
    assert ranks(valid)[1].tolist() == [-1, -1, 0, 1, 2, 3, 4]
    assert first_half(valid).tolist() == [
        [True, True, True, False, False, False, False],
        [False, False, True, True, False, False, False],
        [True, False, False, False, False, False, False],
        [False, False, False, False, False, False, True],
    ]


def test_intervals_are_scipys():
    sample = np.random.default_rng(1).normal(3.0, 2.0, 17)
    ours = bounds(replicates(np.mean, sample))
    theirs = bootstrap(
        [sample], np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), rel=1e-12)


def test_whole_groups_are_drawn():
    """Ten units that repeat one of two values: as groups there are two, so the interval reaches both."""
    values, groups = np.repeat([1.0, 3.0], 5), np.repeat([7, 2], 5)
    assert bounds(replicates(np.mean, values, groups=groups)) == (1.0, 3.0)
    low, high = bounds(replicates(np.mean, values))
    assert 1.0 < low < high < 3.0
    assert set(replicates(np.mean, values, groups=groups)) == {1.0, 2.0, 3.0}


def test_samples_are_drawn_together_or_apart():
    one = np.arange(6.0)

    def difference(left, right, axis):
        return (left - right).mean(axis)

    assert bounds(replicates(difference, one, one)) == (0.0, 0.0)
    low, high = bounds(replicates(difference, one, one, paired=False))
    assert low < 0 < high


def test_an_observer_is_asked_only_for_what_it_overrides():
    class Listens(Observer):
        def on_write(self, block, write):
            self.seen = self.batch.rows

    observer = Listens()
    assert [len(listeners([observer], name)) for name in ("on_batch", "on_write", "on_residual")] == [1, 1, 0]
    listeners([observer], "on_batch")[0](full_batch(torch.zeros(3, 2, dtype=torch.long), 5))
    listeners([observer], "on_write")[0](1, torch.zeros(1))
    assert observer.seen == slice(5, 8)
