"""Sink ratios on hand-made attention maps."""

from types import SimpleNamespace

import pytest
import torch

from spikesink.measure.sinks import SinkCriteria, SinkMeasure, uniform_first_key
from spikesink.observer import Batch, full_batch


def feed(measure, weights, valid=None, rows=2, block=1):
    """Show a whole map (batch, head, query, key) in row blocks, as the attention backend does."""
    batch, heads, tokens, _ = weights.shape
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    measure.on_batch(full_batch(ids) if valid is None else Batch(ids, valid))
    seen = valid if valid is not None else torch.ones(batch, tokens, dtype=torch.bool)
    counts = torch.stack([seen[:, k:].sum(1) for k in range(tokens)], dim=1)
    inputs = SimpleNamespace(
        block=block,
        query=torch.zeros(batch, heads, tokens, 3),
        key=torch.zeros(batch, heads, tokens, 3),
        queries_per_key=counts,
    )
    measure.on_attention(inputs)
    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        measure.on_attention_rows(
            SimpleNamespace(
                block=block, query_start=start, query_stop=stop, key_start=0, total_queries=tokens,
                weights=weights[:, :, start:stop, :stop], virtual_mass=None,
            )
        )  # fmt: skip


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
