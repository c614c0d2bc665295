"""The embedded SmolLM2 on committed token ids: every number of the summary against a naive reference made here."""

import pytest
import torch
from naive import importance, naive, perplexity, sink_numbers

from spikesink import scan

pytestmark = pytest.mark.embedded
RELATIVE = 1e-3


@pytest.fixture(scope="module")
def reference(embedded, golden_ids):
    return naive(embedded.model, "llama", golden_ids)


@pytest.fixture(scope="module")
def record(embedded, golden_ids):
    return scan(embedded, golden_ids, batch_size=5)


def test_perplexity(record, reference, golden_ids):
    assert record.summary.perplexity == pytest.approx(perplexity(reference.logits, golden_ids), rel=RELATIVE)


def test_sink_ratios(record, reference):
    expected = sink_numbers(reference.attention, 0.3)
    assert record.summary.sink_ratio_sun2026 == pytest.approx(expected["sun2026"], rel=RELATIVE)
    assert record.summary.sink_ratio_gu2025 == pytest.approx(expected["gu2025"], rel=RELATIVE)
    assert record.summary.sink1_gu2025 == pytest.approx(expected["sink1_gu2025"], rel=RELATIVE)
    assert record.summary.sink_ratio == record.summary.sink_ratio_sun2026
    assert record.summary.has_sinks


def test_first_key_importance(record, reference):
    expected = torch.stack([importance(attention)[:, :, 0].mean() for attention in reference.attention]).mean()
    assert record.sinks.first_key_importance == pytest.approx(float(expected), rel=RELATIVE)


def test_spike(record, reference):
    largest = {block: float(hidden.abs().max()) for block, hidden in reference.residuals.items()}
    block = max(largest, key=lambda b: largest[b])
    hidden = reference.residuals[block]
    assert record.summary.spike_block == block
    assert record.summary.spike == pytest.approx(largest[block], rel=RELATIVE)
    assert record.summary.spike_channel == int(hidden.abs().amax((0, 1)).argmax())


def test_max_over_median(record, reference):
    ratios = []
    for hidden in reference.residuals.values():
        median = torch.stack([row.abs().flatten().median() for row in hidden]).mean()
        ratios.append(float(hidden.abs().max() / median))
    assert record.summary.max_over_median == pytest.approx(max(ratios), rel=RELATIVE)


def test_massive_count(record, reference):
    count = 0
    for hidden in reference.residuals.values():
        for row in hidden:
            magnitude = row.abs()
            count += int(((magnitude > 100) & (magnitude > 1000 * magnitude.flatten().median())).sum())
    assert record.summary.massive_count == count
    assert count > 0


def test_spike_tokens_and_channels(record, reference):
    summary = record.summary
    hidden = reference.residuals[summary.spike_block].abs()
    median = torch.stack([row.flatten().median() for row in hidden]).mean()
    threshold = max(0.1 * float(hidden.max()), 20 * float(median))
    rows = {(int(s), int(t)) for s, t in torch.nonzero(hidden.amax(-1) >= threshold)}
    assert {(token.sequence, token.position) for token in summary.spike_tokens} == rows
    assert sorted(summary.spike_channels) == torch.nonzero(hidden.amax((0, 1)) >= threshold).flatten().tolist()
    # The first token of every sequence is a spike token. Table 2 of the paper.
    assert {(sequence, 0) for sequence in range(len(hidden))} <= rows


def test_the_text_around_a_spike_token(record, embedded, golden_ids):
    for token in record.summary.spike_tokens:
        ids, place = golden_ids[token.sequence].tolist(), token.position
        texts = [embedded.token_text(token_id) for token_id in ids]
        assert token.before == "".join(texts[max(0, place - 8) : place])
        assert token.after == "".join(texts[place + 1 : place + 9])
    assert any(token.before for token in record.summary.spike_tokens) or all(
        token.position == 0 for token in record.summary.spike_tokens
    )


def test_life_cycle(record, reference):
    """The blocks and the channel that an independent measurement of this model names."""
    summary = record.summary
    assert summary.spike_channel == 507
    assert summary.spike_channels == [507]
    assert summary.spike_block == 24
    assert summary.step_up_blocks == [24]
    assert summary.step_down_blocks == [58, 60]
    shares = {block.block: block.share_of_plateau for block in record.lifecycle.blocks}
    tokens = [(token.sequence, token.position) for token in summary.spike_tokens]
    rows, positions = (torch.tensor(axis) for axis in zip(*tokens, strict=True))
    plateau = reference.residuals[24][rows, positions, 507]
    assert record.lifecycle.step_rule.plateau == pytest.approx(float(plateau.abs().mean()), rel=RELATIVE)
    for block, write in reference.writes.items():
        expected = (write[rows, positions, 507] * plateau.sign()).mean() / plateau.abs().mean()
        assert shares[block] == pytest.approx(float(expected), rel=RELATIVE, abs=1e-6)


def test_block_rows(record, reference):
    for row in record.lifecycle.blocks:
        for peaks, store in ((row.resid_top3, reference.residuals), (row.out_top3, reference.writes)):
            values, channels = store[row.block].abs().amax((0, 1)).topk(3)
            assert [peak.value for peak in peaks] == pytest.approx(values.tolist(), rel=RELATIVE)
            assert [peak.channel for peak in peaks] == channels.tolist()


def test_batch_size_changes_nothing(embedded, golden_ids, record):
    again = scan(embedded, golden_ids, batch_size=24)
    for name, value in record.summary:
        if isinstance(value, float):
            assert getattr(again.summary, name) == pytest.approx(value, rel=1e-4), name
    assert again.summary.spike_channels == record.summary.spike_channels
