"""Losses by hand, and in chunks."""

import math

import pytest
import torch

from spikesink.measure import perplexity
from spikesink.measure.perplexity import LossMeasure, token_losses
from spikesink.observer import Batch, full_batch


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    measure = LossMeasure()
    measure.on_batch(full_batch(torch.zeros(2, 5, dtype=torch.long)))
    measure.on_logits(torch.zeros(2, 5, 11), 0)
    assert measure.compute() == pytest.approx(11.0)


def test_losses_by_hand():
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, math.log(7.0)]]])
    losses = token_losses(logits, torch.tensor([[0, 0]]))
    assert losses[0].tolist() == pytest.approx([math.log(4 / 3), math.log(8)])


def test_chunks_change_nothing(monkeypatch):
    logits = torch.randn(3, 7, 13, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 13, (3, 7), generator=torch.Generator().manual_seed(1))
    whole = token_losses(logits, targets)
    monkeypatch.setattr(perplexity, "CHUNK_ELEMENTS", 3 * 13 * 2)
    assert torch.allclose(token_losses(logits, targets), whole)
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    assert torch.allclose(whole, expected, atol=1e-6)


def test_padding_is_not_predicted():
    ids = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0]])
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    logits = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    measure = LossMeasure()
    measure.on_batch(Batch(ids, valid))
    # In pieces, the last one of a position that predicts nothing.
    for start in (0, 1, 3):
        measure.on_logits(logits[:, start : {0: 1, 1: 3, 3: 4}[start]], start)
    losses = [-float(logits[s, t].log_softmax(-1)[ids[s, t + 1]]) for s, t in ((0, 0), (0, 1), (0, 2), (1, 0))]
    assert measure.compute() == pytest.approx(math.exp(sum(losses) / 4), rel=1e-5)
    assert measure.sequence_losses() == pytest.approx([sum(losses[:3]) / 3, losses[3]], rel=1e-5)


def test_a_sequence_that_predicts_nothing_has_no_loss():
    ids, valid = torch.tensor([[0, 1, 1], [1, 0, 0]]), torch.tensor([[True, True, True], [True, False, False]])
    logits = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    measure = LossMeasure()
    measure.on_batch(Batch(ids, valid))
    measure.on_logits(logits, 0)
    losses = [-float(logits[0, t].log_softmax(-1)[ids[0, t + 1]]) for t in (0, 1)]
    assert measure.predictions == [2, 0]
    assert measure.sequence_losses() == pytest.approx([sum(losses) / 2, math.nan], rel=1e-5, nan_ok=True)
    assert measure.compute() == pytest.approx(math.exp(sum(losses) / 2), rel=1e-5)


def test_columns_of_the_vocabulary_give_the_same_losses():
    random = torch.Generator().manual_seed(3)
    ids, logits = torch.randint(0, 23, (3, 7), generator=random), torch.randn(3, 7, 23, generator=random) * 9
    logits[..., 20:] = -torch.inf  # Tokens that are ruled out, a whole piece of them; none is the next one.
    ids.clamp_(max=19)
    valid = torch.ones(3, 7, dtype=torch.bool)
    valid[1, 5:] = False
    measure = LossMeasure()
    for first in (0, 3):
        measure.on_batch(Batch(ids, valid, first))
        for start, stop in ((0, 11), (11, 20), (20, 23)):
            measure.on_logit_columns(logits[..., start:stop], start)
        measure.on_batch_end()
    naive = [
        [-float(logits[s, t].double().log_softmax(-1)[ids[s, t + 1]]) for t in range(4 if s == 1 else 6)]
        for s in range(3)
    ]
    assert measure.sequence_losses() == pytest.approx([sum(row) / len(row) for row in naive] * 2, rel=1e-6)


def test_overflow_is_infinite_not_an_error():
    measure = LossMeasure()
    measure.loss_sums, measure.predictions = [5000.0], [1]
    assert measure.compute() == math.inf
