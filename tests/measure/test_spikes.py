"""Spike statistics on hand-made residuals."""

import numpy as np
import pytest
import torch

from spikesink.measure import spikes
from spikesink.measure.medians import _drawn, _medians_at_once, row_medians
from spikesink.measure.spikes import SpikeCriteria, SpikeMeasure
from spikesink.measure.tallies import PeakTracker, TokenCandidates
from spikesink.observer import Batch, full_batch


def feed(measure, hidden, valid=None, first_sequence=0, block=2):
    ids = torch.zeros(hidden.shape[:2], dtype=torch.long)
    batch = full_batch(ids, first_sequence) if valid is None else Batch(ids, valid, first_sequence)
    measure.on_batch(batch)
    measure.on_residual(block, hidden)
    measure.on_write(block, hidden)


def test_median_is_the_lower_middle():
    assert row_medians(torch.tensor([[4.0, 1.0, 3.0, 2.0], [5.0, 0.0, 1.0, 3.0], [0.0] * 4])) == [2.0, 3.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zeros", [0, 1, 6, 7, 35])
def test_medians_of_an_accelerator_are_those_of_the_cpu(zeros, dtype):
    magnitude = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(zeros), dtype=dtype)
    magnitude[1].view(-1)[torch.randperm(35, generator=torch.Generator().manual_seed(1))[:zeros]] = 0
    naive = [sorted(value for value in row.flatten().tolist() if value) for row in magnitude]
    expected = [row[(len(row) - 1) // 2] if row else 0.0 for row in naive]
    assert _medians_at_once(magnitude.clone()) == expected
    assert row_medians(magnitude.clone()) == expected


@pytest.mark.parametrize("size", [4_001, 36_864, 100_003])
@pytest.mark.parametrize(
    "kind", ["normal", "sorted", "few values", "constant", "zeros", "one", "sample above", "sample below"]
)
def test_medians_found_near_a_sample_are_exact(kind, size):
    random = np.random.default_rng(size)
    values = np.abs(random.standard_normal(size)).astype(np.float32)
    if kind == "sorted":
        values.sort()
    elif kind == "few values":
        values = np.ceil(values)
    elif kind == "constant":
        values[:] = 0.5
    elif kind == "zeros":
        values[random.permutation(size)[: size * 9 // 10]] = 0
    elif kind == "one":
        values[1:] = 0
    elif kind.startswith("sample"):
        values[_drawn(size)] = 9.0 if kind == "sample above" else 1e-9
    kept = np.sort(values[values > 0])
    assert row_medians(torch.from_numpy(values[None])) == [kept[(len(kept) - 1) // 2]]


def test_top_three_are_distinct_channels_with_their_places():
    hidden = torch.zeros(2, 3, 7)
    hidden[0, 1, 4], hidden[1, 2, 4] = -9.0, 8.0
    hidden[1, 0, 6], hidden[0, 2, 1] = 5.0, -3.0
    tracker = PeakTracker()
    tracker.update(hidden, hidden.abs(), first_sequence=10)
    top = [(p.channel, p.value, p.sign, p.sequence, p.position) for p in tracker.top()]
    assert top == [(4, 9.0, -1, 10, 1), (6, 5.0, 1, 11, 0), (1, 3.0, -1, 10, 2)]


def test_peaks_do_not_depend_on_batches():
    hidden = torch.randn(9, 5, 13, generator=torch.Generator().manual_seed(0))
    whole, parts = PeakTracker(), PeakTracker()
    whole.update(hidden, hidden.abs(), 0)
    for start in range(0, 9, 2):
        piece = hidden[start : start + 2]
        parts.update(piece, piece.abs(), start)
    assert whole.top() == parts.top()
    assert torch.equal(whole.channel_max, parts.channel_max)


def test_medians_are_per_sequence_then_averaged():
    hidden = torch.ones(2, 3, 5)
    hidden[1] = 3.0
    measure = SpikeMeasure()
    feed(measure, hidden)
    assert measure.residuals[2].median == pytest.approx(2.0)


def test_a_planted_spike_is_found_with_its_channel_and_tokens():
    hidden = torch.ones(2, 4, 6)
    hidden[0, 0, 5], hidden[1, 0, 5], hidden[1, 3, 5], hidden[0, 0, 2] = 5000.0, 4000.0, -4500.0, 100.0
    measure = SpikeMeasure()
    feed(measure, hidden)
    result = measure.compute()
    assert result.has_spikes
    assert (result.block, result.peak.channel, result.peak.value) == (2, 5, 5000.0)
    # Channel 2 reaches 100 x the median but only a fiftieth of the spike.
    assert result.channels == [5]
    assert result.tokens.tolist() == [[5000, 0, 0], [4500, 1, 3], [4000, 1, 0]]
    assert result.max_over_median == pytest.approx(5000.0)
    # Massive: |a| > 100 and > 1000 x median 1.
    assert result.verdict.massive_count == 3


def test_large_values_in_every_channel_are_no_spikes():
    """Two tokens of five, large in all channels: 100 x the median of the sequence, and 1.25 x their own."""
    hidden = torch.ones(1, 5, 6)
    hidden[0, 1:3] = 80.0
    hidden[0, 2, 4] = 100.0
    measure = SpikeMeasure()
    feed(measure, hidden)
    result = measure.compute()
    assert result.max_over_median == pytest.approx(100.0)
    assert result.verdict.token_ratio == pytest.approx(1.25)
    assert not result.has_spikes


def test_the_token_ratio_is_that_of_each_sequence_s_largest_token():
    """Sequence 0: token 1 has 30 over its median 2; token 2 has 9 over 0.1, but is not the largest. Sequence 1: 8."""
    hidden = torch.ones(2, 3, 5)
    hidden[0, 1] = torch.tensor([2.0, -30.0, 2.0, 2.0, 2.0])
    hidden[0, 2] = torch.tensor([0.1, 0.1, 9.0, 0.1, 0.1])
    hidden[1, 0, 3] = 8.0
    measure = SpikeMeasure()
    feed(measure, hidden[:1])
    assert measure.compute().verdict.token_ratio == pytest.approx(15.0)
    feed(measure, hidden[1:], first_sequence=1)
    assert measure.compute().verdict.token_ratio == pytest.approx(15.0)
    other = SpikeMeasure()
    feed(other, hidden[1:])
    assert other.compute().verdict.token_ratio == pytest.approx(8.0)


def test_spikes_are_read_where_the_verdict_holds():
    """Block 2 spikes at 100 x its median; block 4 is larger all over, its largest value only twice the median."""
    early, late = torch.ones(1, 4, 6), torch.full((1, 4, 6), 400.0)
    early[0, 2, 5], late[0, 3, 1] = 100.0, 800.0
    measure = SpikeMeasure()
    feed(measure, early, block=2)
    feed(measure, late, block=4)
    result = measure.compute()
    assert (result.block, result.peak.channel, result.peak.value) == (4, 1, 800.0)
    assert result.verdict.verdict_block == 2
    assert result.channels == [5]
    assert result.tokens.tolist() == [[100, 0, 2]]


def test_massive_needs_both_thresholds():
    hidden = torch.full((1, 4, 6), 0.01)
    hidden[0, 1, 1] = 99.0
    measure = SpikeMeasure()
    feed(measure, hidden)
    assert measure.compute().verdict.massive_count == 0
    hidden[0, 1, 1] = 101.0
    measure = SpikeMeasure()
    feed(measure, hidden)
    assert measure.compute().verdict.massive_count == 1


def test_a_large_overall_scale_is_no_spike():
    hidden = 1e4 * torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))
    measure = SpikeMeasure()
    feed(measure, hidden)
    result = measure.compute()
    assert result.peak.value > 1e4
    assert not result.has_spikes
    assert result.channels == []
    assert len(result.tokens) == 0


def test_the_verdict_is_scale_free():
    hidden = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))
    hidden[0, 0, 3] = 60.0
    ratios = []
    for scale in (1e-3, 1.0, 1e3):
        measure = SpikeMeasure()
        feed(measure, scale * hidden)
        ratios.append(measure.compute().max_over_median)
        assert measure.compute().has_spikes
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-5)


def test_padding_never_counts():
    hidden = torch.ones(2, 3, 5)
    hidden[0, 2, 1] = 1e6
    valid = torch.tensor([[True, True, False], [True, True, True]])
    measure = SpikeMeasure()
    feed(measure, hidden, valid)
    assert measure.compute().peak.value == 1.0


def test_the_embedding_does_not_count():
    measure = SpikeMeasure()
    feed(measure, torch.full((1, 2, 3), 99.0), block=0)
    feed(measure, torch.ones(1, 2, 3), block=1)
    assert measure.compute().peak.value == 1.0


def test_candidates_stay_bounded(monkeypatch):
    monkeypatch.setattr("spikesink.measure.tallies.MAX_CANDIDATES", 5)
    candidates = TokenCandidates(share=0.1)
    for sequence in range(40):
        candidates.update(torch.tensor([[float(sequence + 10), 1.0]]), sequence)
    assert len(candidates.rows) <= 10
    assert candidates.above(45.0)[:, 1].tolist() == [39, 38, 37, 36, 35]


def test_criteria_are_parameters():
    hidden = torch.ones(1, 4, 6)
    hidden[0, 1, 1] = 15.0
    for limit, verdict in ((20.0, False), (10.0, True)):
        measure = SpikeMeasure(SpikeCriteria(max_over_median_min=limit))
        feed(measure, hidden)
        assert measure.compute().has_spikes is verdict


@pytest.mark.parametrize(("spiking", "verdict"), [(16, True), (17, False), (39, False)])
def test_spikes_are_in_few_tokens(spiking, verdict, monkeypatch):
    """Of 64 tokens in four sequences at most a quarter; the same where candidates had to be dropped."""
    hidden = torch.ones(4, 16, 6)
    hidden.view(64, 6)[:spiking, 2] = 500.0
    for most in (10_000, 5):
        monkeypatch.setattr("spikesink.measure.tallies.MAX_CANDIDATES", most)
        measure = SpikeMeasure()
        feed(measure, hidden)
        result = measure.compute()
        assert result.has_spikes is verdict
        assert result.verdict.token_share == pytest.approx(spiking / 64)
        assert (result.verdict.reason is None) is verdict
    if not verdict:
        assert f"{spiking / 64:.0%} of the tokens" in result.verdict.reason


def test_two_tokens_a_sequence_are_few_however_short_it_is():
    hidden = torch.ones(3, 3, 6)
    hidden[:, :2, 2] = 500.0
    measure = SpikeMeasure()
    feed(measure, hidden)
    assert measure.compute().has_spikes
    hidden[:, 2, 2] = 500.0
    measure = SpikeMeasure()
    feed(measure, hidden)
    assert not measure.compute().has_spikes


@pytest.mark.parametrize("dead", [0, 3, 9])
def test_channels_that_are_zero_throughout_change_no_verdict(dead):
    """With three of nine channels dead the plain median of the rest would fall; with all but one it would be 0."""
    live = torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(4))
    hidden = torch.cat([live, torch.zeros(2, 8, dead)], dim=-1)
    results = []
    for states in (live, hidden):
        measure = SpikeMeasure()
        feed(measure, states)
        results.append(measure.compute())
    assert results[1].max_over_median == pytest.approx(results[0].max_over_median)
    assert results[1].verdict.token_ratio == pytest.approx(results[0].verdict.token_ratio)
    assert not results[1].has_spikes


def test_a_residual_of_zeros_has_no_ratio():
    measure = SpikeMeasure()
    feed(measure, torch.zeros(2, 3, 5))
    result = measure.compute()
    assert (result.max_over_median, result.verdict.token_ratio, result.has_spikes) == (0.0, 0.0, False)


@pytest.mark.parametrize(("most", "listed"), [(100_000, 4), (2, 2)])
def test_massive_elements_are_listed_by_token_block_and_channel(monkeypatch, most, listed):
    """|a| > 100 and > 1000 x median, as Sun et al. say: three elements in two channels, one of them in two blocks.

    However many are listed, all count by channel.
    """
    monkeypatch.setattr(spikes, "MAX_MASSIVE", most)
    hidden = torch.full((2, 3, 5), 0.1)
    hidden[1, 2, 3], hidden[0, 0, 3], hidden[0, 0, 4] = -300.0, 150.0, 101.0
    valid = torch.ones(2, 3, dtype=torch.bool)
    measure = SpikeMeasure()
    feed(measure, hidden, valid, first_sequence=7)
    hidden[0, 0], hidden[1, 1, 1] = 0.1, 99.0
    valid[1, 2] = False
    feed(measure, hidden, valid, first_sequence=7, block=4)
    hidden[1, 0, 3] = 200.0
    feed(measure, hidden, valid, first_sequence=7, block=5)
    result = measure.compute()
    assert result.massive[:, :4].tolist() == [[7, 0, 2, 3], [7, 0, 2, 4], [8, 2, 2, 3], [8, 0, 5, 3]][:listed]
    assert result.massive[:, 4].tolist() == pytest.approx([150, 101, 300, 200][:listed])
    first, second = result.verdict.massive_channels
    assert (first.channel, first.count, first.tokens, first.first_block, first.last_block) == (3, 3, 3, 2, 5)
    assert first.largest == pytest.approx(300.0)
    assert (second.channel, second.count) == (4, 1)
    assert (second.tokens, second.first_block, second.last_block) == (1, 2, 2)
    assert result.verdict.massive_count == 4


def test_a_token_counts_once_a_channel_however_many_blocks():
    hidden = torch.full((2, 3, 5), 0.1)
    hidden[0, 1, 4], hidden[1, 1, 4], hidden[1, 2, 4] = 400.0, -300.0, 200.0
    measure = SpikeMeasure()
    for first in (0, 2):
        measure.on_batch(full_batch(torch.zeros(2, 3, dtype=torch.long), first))
        for block in (1, 2, 3):
            measure.on_residual(block, hidden)
    (channel,) = measure.compute().verdict.massive_channels
    assert (channel.channel, channel.count, channel.tokens) == (4, 18, 6)
    assert (channel.first_block, channel.last_block, channel.largest) == (1, 3, 400.0)
