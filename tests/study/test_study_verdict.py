"""The verdict on planted cases, the interval against all resamples, and what is never decided."""

import itertools

import numpy as np
import pytest
from study_cases import GRID, base, record

from spikesink.study import table, verdict

RULES = verdict.Rules()


def decide(baseline, variant, *, lost=()):
    """Verdict of `dyt` against `plain` from lists of figures per seed."""
    records = [record("plain", seed, **figures) for seed, figures in enumerate(baseline)]
    records += [record("dyt", seed, **figures) for seed, figures in enumerate(variant)]
    records += [record("dyt", 90 + seed, status=status) for seed, status in enumerate(lost)]
    rows = table.rows(GRID, base(), records)
    (found,) = verdict.verdicts(rows, "plain")
    return found


def figures(spikes, sinks, importances=None, perplexities=None):
    importances, perplexities = importances or sinks, perplexities or [4.0] * len(spikes)
    names = ("spike", "sink_ratio", "first_token_importance", "perplexity", "max_over_median")
    return [
        dict(zip(names, values, strict=True))
        for values in zip(spikes, sinks, importances, perplexities, spikes, strict=True)
    ]


BASELINE = figures([1000, 1100, 1300], [0.5, 0.45, 0.52])


@pytest.mark.parametrize(
    ("spikes", "sinks", "expected"),
    [
        ([100, 150, 120], [0.48, 0.5, 0.44], verdict.SPIKES_GO),
        ([1200, 900, 1150], [0.01, 0.05, 0.0], verdict.SINKS_GO),
        ([9000, 8000, 9900], [0.01, 0.05, 0.0], verdict.SINKS_GO),
        ([100, 150, 120], [0.01, 0.05, 0.0], verdict.BOTH_GO),
        ([1200, 900, 1150], [0.48, 0.5, 0.44], verdict.NEITHER),
        ([9000, 8000, 9900], [0.48, 0.5, 0.44], verdict.NEITHER),
        # Between a third and a half: neither falls nor stays.
        ([460, 440, 450], [0.48, 0.5, 0.44], verdict.UNDECIDED),
        # The mean falls, but one seed lies among the baseline's.
        ([1000, 10, 10], [0.48, 0.5, 0.44], verdict.UNDECIDED),
        ([100, 150, 120], [0.9, 0.1, 0.0], verdict.UNDECIDED),
    ],
)
def test_planted(spikes, sinks, expected):
    assert decide(BASELINE, figures(spikes, sinks)).verdict == expected


def test_importance_may_say_that_sinks_stay_and_nothing_else():
    unclear = [0.9, 0.1, 0.0]
    assert decide(BASELINE, figures([100, 150, 120], unclear, [0.5, 0.4, 0.45])).verdict == verdict.SPIKES_GO
    assert decide(BASELINE, figures([100, 150, 120], unclear, [0.01, 0.02, 0.0])).verdict == verdict.UNDECIDED


def test_too_few_seeds_decide_nothing():
    found = decide(BASELINE, figures([100, 150], [0.48, 0.5]))
    assert found.verdict == verdict.UNDECIDED
    assert "2 seeds" in found.sentence


def test_a_baseline_without_sinks_decides_nothing():
    flat = figures([1000, 1100, 1300], [0.04, 0.03, 0.05])
    assert decide(flat, figures([100, 150, 120], [0.04, 0.03, 0.05])).verdict == verdict.UNDECIDED


def test_divergence_is_a_result_and_lost_cells_are_counted():
    assert decide(BASELINE, [], lost=["diverged", "diverged"]).verdict == verdict.DIVERGED
    found = decide(BASELINE, figures([100, 150, 120], [0.48, 0.5, 0.44]), lost=["failed", "diverged"])
    assert found.verdict == verdict.SPIKES_GO
    assert "1 diverged; 1 failed" in found.sentence


def test_interval_against_every_resample():
    """27 x 27 equally likely resamples of three and three seeds, enumerated."""
    ours, theirs = [1.0, 2.0, 6.0], [10.0, 12.0, 20.0]
    means = [[np.mean(draw) for draw in itertools.product(values, repeat=3)] for values in (ours, theirs)]
    ratios = np.sort([one / other for one in means[0] for other in means[1]])
    found = verdict.effect("spike", ours, theirs, RULES)
    assert found.ratio == pytest.approx(3 / 14)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert abs(found.low - low) <= 0.05 * low
    assert abs(found.high - high) <= 0.05 * high


def test_a_resample_of_zeros_gives_no_bound():
    found = verdict.effect("sink_ratio", [0.2, 0.1, 0.3], [0.0, 0.0, 0.6], RULES)
    assert found.high > 1e30
    assert found.change == "unclear"


def test_claims_follow_from_the_verdicts():
    apart = decide(BASELINE, figures([100, 150, 120], [0.48, 0.5, 0.44]))
    costly = decide(BASELINE, figures([100, 150, 120], [0.48, 0.5, 0.44], perplexities=[5.0, 5.1, 4.9]))
    neither = decide(BASELINE, figures([1200, 900, 1150], [0.48, 0.5, 0.44]))
    undecided = decide(BASELINE, figures([100, 150], [0.48, 0.5]))

    def first_and_last(*found):
        claims = verdict.claims(list(found))
        return claims[0].verdict, claims[-1].verdict

    assert first_and_last(apart, undecided) == ("supported", "supported")
    assert first_and_last(costly) == ("supported", "contradicted")
    assert first_and_last(neither) == ("contradicted", "undecided")
    assert first_and_last(undecided) == ("undecided", "undecided")
