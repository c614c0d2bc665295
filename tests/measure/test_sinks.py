"""Sink ratios on hand-made attention maps."""

import pytest
import torch
from attention_maps import feed

from spikesink.measure.sinks import SinkCriteria, SinkMeasure
from spikesink.positions import uniform_first_key


def one_hot(columns, tokens):
    """A map where query t puts all its mass on columns[t]."""
    weights = torch.zeros(1, 1, tokens, tokens)
    for t, k in enumerate(columns):
        weights[0, 0, t, k] = 1.0
    return weights


def test_importance_of_a_pure_sink():
    measure = SinkMeasure()
    feed(measure, one_hot([0] * 5, 5))
    result = measure.compute()
    assert result.first[1].tolist() == [1.0]
    assert [result.ratio(name) for name in ("sun2026", "gu2025", "sink1_gu2025")] == [1.0, 1.0, 1.0]
    assert result.is_sink(1).tolist() == [True]


def test_the_three_metrics_differ_where_they_should():
    # Key 2 (the third) is seen by the last 4 of 6 queries; two of them attend to it: alpha = 2/6, Gu's alpha = 2/4.
    weights = one_hot([0, 1, 2, 2, 4, 5], 6)
    for epsilon, expected in ((0.4, (0.0, 1.0, 0.0)), (0.3, (1.0, 1.0, 0.0)), (0.15, (1.0, 1.0, 1.0))):
        measure = SinkMeasure(SinkCriteria(epsilon=epsilon))
        feed(measure, weights)
        result = measure.compute()
        assert (result.ratio("sun2026"), result.ratio("gu2025"), result.ratio("sink1_gu2025")) == expected


def test_only_the_first_half_counts():
    # floor(5 / 2) = 2: key 2 (the third) lies outside, however much it gets.
    measure = SinkMeasure()
    feed(measure, one_hot([0, 1, 2, 2, 2], 5))
    assert measure.compute().largest[1].tolist() == pytest.approx([0.2])


def test_padding_neither_queries_nor_shifts_the_half():
    weights = one_hot([0, 0, 2, 2, 0, 0], 6)
    valid = torch.tensor([[True, True, True, True, False, False]])
    measure = SinkMeasure()
    feed(measure, weights, valid)
    result = measure.compute()
    # Four real queries: two on key 0; key 2 lies outside floor(4 / 2).
    assert result.first[1].tolist() == pytest.approx([0.5])
    assert result.largest[1].tolist() == pytest.approx([0.5])


def test_ratio_is_over_heads_and_sequences():
    sink, local = one_hot([0, 0, 0, 0], 4), one_hot([0, 1, 2, 3], 4)
    first = torch.cat([sink, local, local], dim=1)
    second = torch.cat([sink, sink, local], dim=1)
    measure = SinkMeasure(SinkCriteria(epsilon=0.5))
    feed(measure, torch.cat([first, second]))
    result = measure.compute()
    assert result.rates["sun2026"][1].tolist() == [1.0, 0.5, 0.0]
    assert result.ratio("sun2026") == pytest.approx(0.5)


def test_uniform_attention_is_no_sink_at_any_length():
    for tokens in (2, 3, 5, 9, 30, 64):
        weights = torch.ones(1, 2, tokens, tokens).tril()
        weights = weights / weights.sum(-1, keepdim=True)
        measure = SinkMeasure()
        feed(measure, weights)
        result = measure.compute()
        assert result.first[1].tolist() == pytest.approx([uniform_first_key(tokens)] * 2)
        assert not result.is_sink(1).any()


def test_uniform_first_key_by_hand():
    assert uniform_first_key(3) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_the_ratio_at_every_epsilon():
    """Two heads in two sequences: alphas 0.5, 1, 0.25, 0.25 of the first key."""
    one, other = torch.cat([one_hot(c, 4) for c in ([0, 0, 2, 3], [0, 1, 2, 3])], dim=1), one_hot([0] * 4, 4)
    measure = SinkMeasure(SinkCriteria(epsilon=0.6))
    feed(measure, torch.cat([one, torch.cat([other, one_hot([0, 1, 2, 3], 4)], dim=1)]))
    result = measure.compute()
    curve = {entry.epsilon: entry.sun2026 for entry in result.by_epsilon}
    assert [curve[at] for at in (0.05, 0.2, 0.25, 0.45, 0.5, 0.95)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert result.ratio("sun2026") == curve[0.6] == 0.25


@pytest.mark.parametrize("rows", [3, 8, 11, 40])
def test_the_ratio_on_the_first_tokens_is_that_of_a_text_cut_there(rows):
    """In row blocks that end before, at and behind the lengths that are counted."""
    weights = torch.rand(2, 5, 40, 40, generator=torch.Generator().manual_seed(6)).pow(4).tril()
    weights[:, :2, :, 0] += torch.linspace(0, 3, 40)
    weights /= weights.sum(-1, keepdim=True)
    measure = SinkMeasure(SinkCriteria(epsilon=0.25))
    feed(measure, weights, rows=rows)
    by_tokens = {entry.tokens: entry.sun2026 for entry in measure.compute().by_tokens}
    assert list(by_tokens) == [8, 16, 32]
    for tokens, ratio in by_tokens.items():
        cut = SinkMeasure(SinkCriteria(epsilon=0.25))
        feed(cut, weights[:, :, :tokens, :tokens])
        assert ratio == cut.compute().ratio("sun2026")
    assert len(set(by_tokens.values())) > 1


@pytest.mark.parametrize(("tokens", "said"), [(3, True), (9, True), (10, False)])
def test_a_length_at_which_every_model_has_sinks_is_named(tokens, said):
    weights = torch.ones(1, 2, tokens, tokens).tril()
    measure = SinkMeasure()
    feed(measure, weights / weights.sum(-1, keepdim=True))
    result = measure.compute()
    assert result.ratio("sun2026") == float(said)
    assert (result.section().ratio_reason is not None) is said


@pytest.mark.parametrize("lengths", [[6] * 10 + [64], [6] * 10, [64], [7] * 49])
def test_uniform_attention_is_no_sink_in_text_of_any_lengths(lengths):
    """The floor is that of the same sequences, one by one; of one length, that of this length to the last digit."""
    tokens = max(lengths)
    weights = torch.ones(len(lengths), 2, tokens, tokens).tril()
    valid = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    measure = SinkMeasure()
    feed(measure, weights / weights.sum(-1, keepdim=True), valid)
    result = measure.compute()
    expected = sum(sum(1 / t for t in range(1, length + 1)) / length for length in lengths) / len(lengths)
    section = result.section()
    assert section.uniform_first_key == pytest.approx(expected)
    assert result.first[1].tolist() == pytest.approx([expected] * 2)
    assert not result.is_sink(1).any()
    assert (section.ratio_reason is not None) == (expected > 0.3)
    if min(lengths) == tokens:
        assert section.uniform_first_key == uniform_first_key(tokens)
    elif section.ratio_reason:
        assert "at 6 to 64 tokens" in section.ratio_reason


def test_left_padding_shifts_no_key():
    """Two real queries of four, both on the first real key: its importance stands at rank 0."""
    weights = one_hot([0, 0, 2, 2], 4)
    measure = SinkMeasure()
    feed(measure, weights, torch.tensor([[False, False, True, True]]))
    result = measure.compute()
    assert result.positions[1].tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert result.by_tokens == []
