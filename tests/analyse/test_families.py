"""Every number of a scan against the naive eager computation, for every supported family."""

import pytest
import torch
from naive import importance, naive, perplexity, sink_numbers
from tiny import FAMILIES, VARIANTS, tiny, token_ids

from spikesink import scan
from spikesink.access import access

EPSILON = 0.2
ALL = [*FAMILIES, *VARIANTS]


@pytest.fixture(scope="module", params=ALL)
def case(request):
    """One family, scanned in batches of two with three sequences, and the naive reference of the same ids."""
    model = tiny(request.param)
    ids = token_ids(sequences=3, tokens=13)
    reference = naive(model, request.param, ids)
    record = scan(access(model), ids, epsilon=EPSILON, batch_size=2)
    return record, reference, ids


def test_perplexity(case):
    record, reference, ids = case
    assert record.summary.perplexity == pytest.approx(perplexity(reference.logits, ids), rel=1e-4)


def test_sink_ratios(case):
    record, reference, _ = case
    expected = sink_numbers(reference.attention, EPSILON)
    assert record.summary.sink_ratio_sun2026 == pytest.approx(expected["sun2026"], abs=1e-9)
    assert record.summary.sink_ratio_gu2025 == pytest.approx(expected["gu2025"], abs=1e-9)
    assert record.summary.sink1_gu2025 == pytest.approx(expected["sink1_gu2025"], abs=1e-9)
    assert record.summary.sink_ratio == record.summary.sink_ratio_sun2026


def test_importance_of_every_key(case):
    record, reference, _ = case
    for index, attention in enumerate(reference.attention):
        expected = importance(attention).mean(0)
        ours = torch.from_numpy(record.arrays["key_importance"][index]).double()
        assert torch.allclose(ours, expected, atol=2e-6, rtol=1e-4)


def test_head_rows(case):
    record, reference, _ = case
    rows = {(head.block, head.head): head for head in record.sinks.heads}
    assert len(rows) == sum(attention.shape[1] for attention in reference.attention)
    for index, attention in enumerate(reference.attention):
        alpha = importance(attention)
        half = alpha[:, :, : alpha.shape[2] // 2].amax(-1)
        for head in range(alpha.shape[1]):
            row = rows[2 * index + 1, head]
            assert row.first_key_importance == pytest.approx(float(alpha[:, head, 0].mean()), rel=1e-4, abs=1e-7)
            assert row.max_importance == pytest.approx(float(half[:, head].mean()), rel=1e-4)
            assert row.sink_rate == pytest.approx(float((half[:, head] > EPSILON).double().mean()))


def test_life_cycle(case):
    record, reference, _ = case
    assert [block.block for block in record.lifecycle.blocks] == sorted(reference.writes)
    for block in record.lifecycle.blocks:
        _same_peaks(block.out_top3, reference.writes[block.block])
        if block.block in reference.residuals:
            residual = reference.residuals[block.block]
            _same_peaks(block.resid_top3, residual)
            medians = [float(residual[s].abs().flatten().median()) for s in range(len(residual))]
            assert block.resid_median == pytest.approx(sum(medians) / len(medians), rel=1e-4)
        else:
            assert block.resid_top3 is None
            assert block.resid_median is None


def _same_peaks(peaks, tensor):
    magnitude = tensor.abs().amax((0, 1))
    values, channels = magnitude.topk(3)
    assert [peak.channel for peak in peaks] == channels.tolist()
    for peak, value in zip(peaks, values, strict=True):
        assert peak.value == pytest.approx(float(value), rel=1e-4)
        there = float(tensor[peak.sequence, peak.position, peak.channel])
        assert peak.sign * peak.value == pytest.approx(there, rel=1e-4)


def test_spike_is_the_plain_argmax(case):
    record, reference, _ = case
    largest = {block: float(tensor.abs().max()) for block, tensor in reference.residuals.items()}
    block = max(largest, key=lambda b: largest[b])
    assert record.summary.spike_block == block
    assert record.summary.spike == pytest.approx(largest[block], rel=1e-4)
    channel = int(reference.residuals[block].abs().amax((0, 1)).argmax())
    assert record.summary.spike_channel == channel


def test_random_models_have_neither_spikes_nor_invented_steps(case):
    summary = case[0].summary
    assert not summary.has_spikes
    assert summary.spike_channels == []
    assert summary.spike_tokens == []
    assert summary.step_up_blocks == []
    assert summary.step_down_blocks == []
