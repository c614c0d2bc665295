"""What is measured sequence by sequence, against explicit loops."""

import numpy as np
import pytest
import torch
from naive import importance
from tiny import tiny, token_ids

from spikesink import bootstrap
from spikesink.access import Batch, access, full_batch, observing, run
from spikesink.measure.sinks import SinkCriteria, SinkMeasure
from spikesink.measure.spikes import SequenceSpikes
from spikesink.measure.states import ChannelRange, SpikeStates


def fed(observer, residuals, valid=None):
    """Show residuals by block, (batch, token, channel), as two batches."""
    ids = torch.zeros(next(iter(residuals.values())).shape[:2], dtype=torch.long)
    valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    for rows in (slice(0, 1), slice(1, None)):
        if hasattr(observer, "on_batch"):
            observer.on_batch(Batch(ids[rows], valid[rows]))
        for block, hidden in residuals.items():
            observer.on_residual(block, hidden[rows])
    return observer


@pytest.fixture
def residuals():
    generator = torch.Generator().manual_seed(3)
    return {block: torch.randn(3, 5, 7, generator=generator) for block in range(5)}


def test_spikes_by_sequence(residuals):
    residuals[0] *= 100
    residuals[3][1, 4, 2] = -50.0
    valid = torch.ones(3, 5, dtype=torch.bool)
    valid[1, 4] = False
    for mask in (None, valid):
        measured = fed(SequenceSpikes(plateau=(2, 3)), residuals, mask)
        for row in range(3):
            kept = [t for t in range(5) if mask is None or mask[row, t]]
            largest = {b: max(abs(float(h)) for h in residuals[b][row, kept].flatten()) for b in (1, 2, 3, 4)}
            medians = {b: np.sort(residuals[b][row, kept].abs().flatten())[(len(kept) * 7 - 1) // 2] for b in largest}
            assert measured.largest[row] == pytest.approx(max(largest.values()))
            assert measured.plateaus[row] == pytest.approx(max(largest[2], largest[3]))
            assert measured.ratios[row] == pytest.approx(max(largest[b] / medians[b] for b in largest), rel=1e-5)


def test_states(residuals):
    states = fed(SpikeStates(2, lambda hidden: hidden[..., 1] > 0.5), residuals)
    chosen = residuals[2][..., 1] > 0.5
    spikes, others = states.means()
    assert sorted(spikes) == [2, 3, 4]
    for block in spikes:
        assert torch.allclose(spikes[block], residuals[block][chosen].mean(0), atol=1e-6)
        assert torch.allclose(others[block], residuals[block][~chosen].mean(0), atol=1e-6)
    assert states.tokens == int(chosen.sum())
    assert states.ordinary_max == pytest.approx(float(residuals[2][~chosen].abs().max()))
    assert torch.equal(torch.cat(states.spikes), chosen)


def test_channel_ranges(residuals):
    ranges = ChannelRange()
    ranges.update("a", residuals[1])
    ranges.update("a", residuals[2].flatten(0, 1))
    expected = torch.maximum(residuals[1].abs().amax((0, 1)), residuals[2].abs().amax((0, 1)))
    assert torch.equal(ranges.largest["a"], expected)
    assert ranges.worst("a", 2).tolist() == expected.argsort(descending=True)[:2].tolist()


@pytest.mark.parametrize("metric", ["sun2026", "gu2025"])
def test_sink_ratio_by_sequence(metric):
    model = tiny("llama")
    ids = token_ids(sequences=5, tokens=13)
    measure = SinkMeasure(SinkCriteria(metric=metric, epsilon=0.25))
    accessed = access(model)
    with observing(accessed, [measure]):
        for rows in (slice(0, 2), slice(2, 5)):
            run(accessed, full_batch(ids[rows]))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    expected = np.zeros(5)
    for layer in attention:
        alpha = importance(layer)
        if metric == "gu2025":
            alpha = alpha * 13 / torch.arange(13, 0, -1)
        expected += (alpha[..., :6].amax(-1) > 0.25).sum(1).numpy() / 12
    assert measure.sequence_ratios() == pytest.approx(expected.tolist())
    assert len(set(expected)) > 1
    assert np.mean(measure.sequence_ratios()) == pytest.approx(measure.compute().ratio(metric))


def test_intervals():
    sums, counts = [12.0, 9.0, 20.0, 11.0], [4, 3, 5, 4]
    estimate = bootstrap.estimate(bootstrap.perplexity, sums, counts)
    assert estimate.value == pytest.approx(np.exp(52 / 16))
    assert np.exp(11 / 4) < estimate.low < estimate.value < estimate.high < np.exp(4)
    assert bootstrap.estimate(bootstrap.perplexity, sums, counts) == estimate
    # The spread of resampled means of four values is known: standard deviation over the root of four.
    values = np.random.default_rng(1).normal(size=400)
    wide = bootstrap.estimate(bootstrap.mean, values)
    assert wide.high - wide.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap.estimate(bootstrap.mean, [2.0, 2.0, 2.0]).low == 2.0
    shifted = bootstrap.estimate(bootstrap.difference, [3.0, 5.0, 9.0], [1.0, 3.0, 7.0])
    assert (shifted.value, shifted.low, shifted.high) == (2.0, 2.0, 2.0)
