"""States at chosen tokens, against indexing by hand."""

import torch

from spikesink.measure.states import Gather
from spikesink.observer import Batch, full_batch


def test_tokens_of_several_batches_and_chosen_channels():
    hidden = torch.arange(3 * 4 * 5.0).view(3, 4, 5)
    ids = torch.zeros(3, 4, dtype=torch.long)
    gather = Gather(torch.tensor([2, 0, 2]), torch.tensor([1, 3, 0]), residuals=[2], channels=torch.tensor([4, 0]))
    for rows in (slice(0, 2), slice(2, 3)):
        gather.on_batch(full_batch(ids[rows], rows.start))
        gather.on_residual(2, hidden[rows])
        gather.on_residual(3, hidden[rows])
        gather.on_write(2, hidden[rows])
    assert gather.residuals[2].tolist() == [[49.0, 45.0], [19.0, 15.0], [44.0, 40.0]]
    assert list(gather.residuals) == [2]
    assert gather.writes == {}


def test_states_that_come_in_pieces_of_positions():
    pieces = torch.arange(2 * 6 * 3.0, dtype=torch.float64).view(2, 6, 3)
    gather = Gather(torch.tensor([1, 0, 1]), torch.tensor([5, 2, 0]))
    gather.on_batch(Batch(torch.zeros(2, 6), torch.ones(2, 6, dtype=torch.bool)))
    kept = {}
    for start in (0, 2, 4):
        gather.keep(kept, 7, pieces[:, start : start + 2], start)
    assert torch.equal(kept[7], pieces[[1, 0, 1], [5, 2, 0]])
