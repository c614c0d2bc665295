"""Intervals against scipy's and by simulation, Holm by hand, the scales, and how many seeds a decision needs."""

import math

import numpy as np
import pytest
from scipy import stats

from spikesink.bootstrap import holm
from spikesink.study.comparison import UNBOUNDED, LogitScale, LogScale, welch


def test_against_welch():
    ours, theirs = [1.0, 2.0, 6.0, 4.0], [10.0, 12.0, 21.0]
    difference = welch(ours, theirs)
    peer = stats.ttest_ind(ours, theirs, equal_var=False)
    assert difference.value == pytest.approx(3.25 - 43 / 3)
    assert difference.degrees == pytest.approx(peer.df)
    low, high = peer.confidence_interval(0.95)
    assert difference.interval(0.95) == (pytest.approx(low), pytest.approx(high))
    assert difference.p_below(0) == pytest.approx(
        stats.ttest_ind(ours, theirs, equal_var=False, alternative="less").pvalue
    )
    assert difference.p_above(0) == pytest.approx(1 - difference.p_below(0))


def test_effect_size_by_hand():
    """Means 2 and 5, variances 1 and 1: d = -3, corrected by 1 - 3 / 15."""
    assert welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]).size() == pytest.approx(-3 * 0.8)


@pytest.mark.parametrize("seeds", [3, 5, 8, 10])
def test_coverage(seeds):
    """What is called 95 % holds in 95 % of studies, also where the two spreads differ by a factor of 3."""
    rng = np.random.default_rng(seeds)
    draws = 2000
    ours, theirs = rng.normal(0.7, 0.6, (draws, seeds)), rng.normal(0.0, 0.2, (draws, seeds))
    inside = 0
    for one, other in zip(ours, theirs, strict=True):
        low, high = welch(one, other).interval(0.95)
        inside += low <= 0.7 <= high
    # Four standard errors of a share near 0.95 are 0.02; Welch's approximation is a little wide at three.
    assert 0.93 <= inside / draws <= 0.98


def test_a_single_seed_and_no_spread():
    assert welch([1.0], [2.0, 3.0]).interval(0.95) == (-math.inf, math.inf)
    assert welch([1.0], [2.0, 3.0]).p_below(100) == 1.0
    same = welch([3.0, 3.0], [1.0, 1.0, 1.0])
    assert same.interval(0.95) == (2.0, 2.0)
    assert (same.p_above(1.9), same.p_above(2.1), same.p_below(2.1)) == (0.0, 1.0, 0.0)
    assert same.size() is None
    with pytest.raises(ValueError, match="no difference"):
        welch([], [1.0])


def test_holm_by_hand():
    assert holm([0.03, 0.01, 0.04]) == [pytest.approx(0.06), pytest.approx(0.03), pytest.approx(0.06)]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_seeds_needed():
    """At the number said nine in ten studies decide, with two fewer not."""
    pilot = welch([0.0, 1.0, 2.0], [1.2, 2.2, 3.2])
    needed = pilot.seeds_needed([0.0], 0.95)
    assert needed is not None
    shares = []
    for seeds in (needed, needed - 3):
        rng = np.random.default_rng(1)
        draws = [welch(rng.normal(-1.2, 1, seeds), rng.normal(0, 1, seeds)).interval(0.95) for _ in range(600)]
        shares.append(np.mean([high < 0 for _, high in draws]))
    assert shares[0] == pytest.approx(0.9, abs=0.05)
    assert shares[1] < shares[0]
    assert pilot.seeds_needed([-1.2], 0.95) is None


def test_log_scale():
    scale = LogScale()
    assert scale.to([1.0, math.e]) == [0.0, 1.0]
    assert scale.ratio(scale.limit(0.25, 3.0), 3.0) == pytest.approx(0.25)
    assert scale.ratio(math.inf, 0.0) == UNBOUNDED


def test_logit_scale():
    """Half of a sink ratio of 0.6 is 0.3, whatever the logits are; uniform attention is zero importance."""
    scale = LogitScale(floor=0.01)
    (at,) = scale.to([0.6])
    limit = scale.limit(0.5, at)
    assert at + limit == pytest.approx(math.log(0.3 / 0.7))
    assert scale.ratio(limit, at) == pytest.approx(0.5)
    assert scale.to([0.0, 1.0]) == [pytest.approx(math.log(0.01 / 0.99)), pytest.approx(math.log(99))]
    above_uniform = LogitScale(floor=0.01, least=0.2)
    assert above_uniform.to([0.2, 0.6]) == [pytest.approx(math.log(0.01 / 0.99)), pytest.approx(0.0)]
