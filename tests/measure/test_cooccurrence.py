"""Overlap by hand and against its chance; sink tokens by explicit counting; properties, directions and statistics."""

import numpy as np
import pytest
import torch
from attention_maps import feed
from scipy.stats import hypergeom, spearmanr, ttest_1samp

from spikesink.bootstrap import holm
from spikesink.measure.geometry import alignment, map_gain, mean_cosine, random_cosine, random_gain
from spikesink.measure.properties import (
    SequenceMaxima,
    answer,
    edge_share,
    limits_around,
    overlap,
    ratio_variation,
    together,
)
from spikesink.measure.sink_tokens import SinkTokenMeasure
from spikesink.measure.statistics import bootstrap_mean, clustered_p_value, rank_correlation, within_groups
from spikesink.observer import Batch
from spikesink.records.intervals import Interval


def masks(n, spikes, sinks):
    one, other = torch.zeros(2, n // 2, dtype=torch.bool), torch.zeros(2, n // 2, dtype=torch.bool)
    one.view(-1)[spikes], other.view(-1)[sinks] = True, True
    return one, other


def test_overlap_by_hand():
    spike, sink = masks(20, [0, 1, 2, 3], [2, 3, 4, 5, 6])
    eligible = torch.ones(2, 10, dtype=torch.bool)
    eligible[0, 6] = False
    counts = overlap(spike, sink, eligible)
    assert (counts.n, counts.spikes, counts.sinks, counts.both) == (19, 4, 4, 2)
    assert (counts.precision, counts.recall, counts.jaccard) == (0.5, 0.5, 2 / 6)
    tail = float(hypergeom(19, 4, 4).sf(1))
    assert counts.p_value == pytest.approx(tail, abs=0.04)
    law = hypergeom(19, 4, 4)
    expected = sum(float(law.pmf(k)) * k / (8 - k) for k in range(5))
    assert counts.chance_jaccard == pytest.approx(expected, abs=0.02)


def test_identical_and_disjoint_sets():
    spike, sink = masks(200, list(range(10)), list(range(10)))
    same = overlap(spike, sink, torch.ones_like(spike))
    assert same.jaccard == 1.0
    assert same.p_value < 0.01
    apart = overlap(*masks(200, list(range(10)), list(range(50, 60))), torch.ones_like(spike))
    assert (apart.jaccard, apart.p_value) == (0.0, 1.0)
    assert overlap(spike, torch.zeros_like(sink), torch.ones_like(spike)).jaccard is None


def test_sink_tokens_are_counted_over_heads_in_the_first_half():
    B, H, T = 2, 3, 6
    weights = torch.rand(B, H, T, T, generator=torch.Generator().manual_seed(0)).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[1, 4:] = False
    least = (0.25, 0.45)
    measure = SinkTokenMeasure((B, T), torch.tensor(least))
    feed(measure, weights, valid, rows=4, blocks=(1, 3))
    for b, length in enumerate((6, 4)):
        for k in range(T):
            expected = 0
            for h in range(H):
                alpha = sum(float(weights[b, h, t, k]) for t in range(length)) / length
                expected += 2 * (alpha > least[b] and k < length // 2)
            assert int(measure.heads[b, k]) == expected
    assert measure.head_count == 6
    found = measure.compute()
    assert (found.heads_min, found.importance_min) == (1, 0.25)
    assert found.mask.equal(measure.heads >= 1)


def test_properties_by_hand():
    assert edge_share({1: 90.0, 2: 10.0, 3: 100.0, 6: 25.0}) == pytest.approx(0.9)
    assert edge_share({1: 1.0, 2: 2.0, 3: 100.0, 6: 25.0}) == pytest.approx(0.25)
    rising = np.array([[1.0, -2.0], [2.0, -4.0], [5.0, -10.0]])
    assert together(rising) == pytest.approx(1.0)
    assert together(rising[:, :1]) is None
    values = np.array([[10.0, 1.0], [10.0, 3.0]])
    assert ratio_variation(values) == pytest.approx(np.std([0.1, 0.3], ddof=1) / 0.2)
    assert ratio_variation(rising) == pytest.approx(0.0, abs=1e-12)
    assert ratio_variation(values[:1]) is None


def test_verdicts_say_when_they_hang_on_the_limit():
    assert limits_around(0.25, at_least=False) == pytest.approx((0.2, 0.3125))
    assert limits_around(0.9, at_least=True) == pytest.approx((0.92, 0.875))
    apart, across = (Interval(value=0.1, low=low, high=high, n=9) for low, high in ((0.05, 0.15), (0.05, 0.3)))
    cases = {0.1: "holds", 0.224: "borderline", 0.279: "borderline", 0.4: "does not hold"}
    for value, expected in cases.items():
        assert answer(value, 0.25, None, at_least=False) == expected
    assert answer(0.1, 0.25, apart, at_least=False) == "holds"
    assert answer(0.1, 0.25, across, at_least=False) == "borderline"
    assert answer(0.4, 0.25, apart, at_least=False) == "borderline"
    assert [answer(value, 0.9, None, at_least=True) for value in (0.99, 0.91, 0.8)] == [
        "holds", "borderline", "does not hold",
    ]  # fmt: skip


def test_maxima_by_sequence():
    hidden = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(5, 4, dtype=torch.bool)
    valid[3, 2:] = False
    observer = SequenceMaxima(5)
    for rows in (slice(0, 2), slice(2, 5)):
        observer.on_batch(Batch(torch.zeros(5, 4, dtype=torch.long)[rows], valid[rows], first_sequence=rows.start))
        for block in (0, 2):
            observer.on_residual(block, (block + 1) * hidden[rows])
    assert list(observer.maxima) == [2]
    for index in range(5):
        expected = max(3 * float(hidden[index, t].abs().max()) for t in range(4) if valid[index, t])
        assert observer.maxima[2][index] == pytest.approx(expected)


def test_mean_cosine_and_its_interval():
    """Against pairs by hand; resamples count pairs of different vectors only."""
    vectors = np.random.default_rng(4).normal(size=(7, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [abs(float(vectors[i] @ vectors[j])) for i in range(7) for j in range(i)]
    estimate = mean_cosine(vectors)
    assert (estimate.value, estimate.n) == (pytest.approx(np.mean(pairs)), 7)
    drawn = np.random.default_rng(0).integers(0, 7, (2000, 7))
    means = []
    for row in drawn:
        own = [abs(float(vectors[i] @ vectors[j])) for i in row for j in row if i != j]
        means += [np.mean(own)] if own else []
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-6)
    assert mean_cosine(vectors[:1]).value is None


def test_directions():
    direction = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, 2.0]), dim=0)
    vectors = torch.stack([-3 * direction, torch.tensor([2.0, -1.0, 0.0])])
    assert alignment(vectors, direction) == pytest.approx(0.5, abs=1e-6)
    leading = 4.0 * torch.outer(direction, torch.tensor([0.0, 1.0, 0.0]))
    assert map_gain(leading, direction) == pytest.approx(3**0.5, rel=1e-6)
    assert map_gain(torch.eye(3), direction) == pytest.approx(1.0)
    assert random_gain(torch.eye(3)) == pytest.approx(1.0, rel=1e-5)
    drawn = torch.nn.functional.normalize(torch.randn(4000, 200, generator=torch.Generator().manual_seed(0)), dim=1)
    assert random_cosine(200) == pytest.approx(float((drawn[:2000] * drawn[2000:]).sum(1).abs().mean()), rel=0.06)


def test_bootstrap_covers_the_mean_at_its_rate():
    generator = np.random.default_rng(5)
    inside = 0
    for seed in range(60):
        interval = bootstrap_mean(generator.normal(2.0, 1.0, 40), seed=seed)
        inside += interval.low <= 2.0 <= interval.high
    assert 50 <= inside <= 60
    weighted = bootstrap_mean(np.array([1.0, 4.0, np.nan]), np.array([3.0, 1.0, 5.0]))
    assert weighted.value == pytest.approx(7 / 4)
    assert weighted.n == 2
    assert bootstrap_mean(np.array([])).value is None
    assert bootstrap_mean(np.array([3.0])).low is None


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(0)
    one = generator.normal(size=50).round(1)
    other = one + generator.normal(size=50)
    estimate = rank_correlation(one, other)
    assert estimate.value == pytest.approx(float(spearmanr(one, other).statistic))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.low > 0
    assert rank_correlation(one, np.exp(one)).value == pytest.approx(1.0)
    assert rank_correlation(one, np.ones(50)).value is None
    assert rank_correlation(one[:2], other[:2]).value is None
    groups = np.repeat([0, 1], 25)
    assert within_groups(one + 100 * groups, groups) == pytest.approx(within_groups(one, groups), abs=1e-9)


def test_units_of_one_group_are_drawn_together():
    """Heads of a layer that all say the same say no more than one of them; taken one by one they would."""
    generator = np.random.default_rng(4)
    one, groups = generator.normal(size=9), np.repeat(np.arange(9), 5)
    other = one + generator.normal(size=9)
    alone = rank_correlation(one, other)
    repeated = np.repeat(one, 5), np.repeat(other, 5)
    layers, heads = rank_correlation(*repeated, groups), rank_correlation(*repeated)
    assert (layers.value, layers.low, layers.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert heads.high - heads.low < 0.6 * (layers.high - layers.low)
    mean = bootstrap_mean(repeated[0], groups=groups)
    assert (mean.low, mean.high) == pytest.approx((bootstrap_mean(one).low, bootstrap_mean(one).high))


def test_one_group_has_a_value_and_no_interval():
    """Drawn again and again it is itself, which would be an interval of no width."""
    ranks, layers = np.array([[1.0, 2, 3, 4], [2.0, 1, 3, 4]]), np.array([0, 0, 0, 0])
    for estimate in (rank_correlation(*ranks, layers), bootstrap_mean(ranks[0], groups=layers)):
        assert (estimate.low, estimate.high, estimate.n) == (None, None, 4)
    assert rank_correlation(*ranks, layers).value == pytest.approx(0.8)
    unknown = np.array([1.0, 2, 3, 4, np.nan])
    assert rank_correlation(unknown, np.array([2.0, 1, 3, 4, 5]), np.array([0, 0, 0, 0, 1])).low is None


def test_clustered_p_value():
    """One unit a cluster is the t-test; the same values repeated within clusters say nothing new."""
    values = np.random.default_rng(3).normal(0.6, 1, 17)
    own = clustered_p_value(values, np.arange(17))
    assert own == pytest.approx(float(ttest_1samp(values, 0).pvalue))
    assert clustered_p_value(np.repeat(values, 4), np.repeat(np.arange(17), 4)) == pytest.approx(own)
    assert clustered_p_value(np.repeat(values, 4), np.arange(68)) < own / 2
    assert clustered_p_value(values, np.zeros(17)) == 1.0


def test_holm_by_hand():
    """Limits 0.0125, 0.0167, 0.025, 0.05 in order of the values; the first that fails ends it."""
    assert [p <= 0.05 for p in holm([0.06, 0.001, 0.03, 0.016])] == [False, True, False, True]
    assert [p <= 0.05 for p in holm([0.02, 0.001, 0.018, 0.5])] == [False, True, False, False]
