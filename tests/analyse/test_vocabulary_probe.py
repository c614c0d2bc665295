"""The vocabulary probe: against whole forward passes, and on the embedded model."""

import numpy as np
import pytest
import torch
from tiny import VOCAB, tiny

from spikesink.access import access, full_batch, observing, run
from spikesink.analyse.anatomy.vocabulary_probe import LATER_LENGTH, _behind, probe_vocabulary


class Keep:
    def on_residual(self, block, hidden):
        if block == 3:
            self.hidden = hidden.clone()
        if block == 0:
            self.embedding = hidden.clone()


def test_the_probe_is_a_whole_forward_of_each_item_alone():
    accessed = access(tiny("llama"))
    found = probe_vocabulary(accessed, 3, batch_tokens=10)
    assert found.ids.tolist() == list(range(VOCAB))
    keep = Keep()
    for item in (0, 41, 96):
        with observing(accessed, [keep]):
            run(accessed, full_batch(torch.tensor([[item]])))
        assert found.first[item] == pytest.approx(float(keep.hidden.abs().max()), rel=1e-5)
        assert found.embedding_norm[item] == pytest.approx(float(keep.embedding.norm()), rel=1e-5)


def test_the_control_measures_every_item_once_behind_a_prefix():
    accessed = access(tiny("llama"))
    items = np.arange(0, VOCAB, 2)
    found = probe_vocabulary(accessed, 3, items, batch_tokens=40)
    measured = {}
    keep = Keep()
    for rows, places in _behind(items, 40):
        assert rows.shape[1] == LATER_LENGTH
        with observing(accessed, [keep]):
            run(accessed, full_batch(torch.from_numpy(rows)))
        for row in range(len(rows)):
            assert places[row, 0] == -1
            for position in range(1, LATER_LENGTH):
                if places[row, position] >= 0:
                    assert rows[row, position] == items[places[row, position]]
                    assert places[row, position] not in measured
                    measured[int(places[row, position])] = float(keep.hidden[row, position].abs().max())
    assert sorted(measured) == list(range(len(items)))
    assert found.later == pytest.approx(np.array([measured[i] for i in range(len(items))]), rel=1e-5)


@pytest.mark.embedded
def test_nearly_every_item_of_the_embedded_model_spikes_at_position_0(embedded):
    """A fixed sample; the whole vocabulary (49,145 of 49,152) is `make bench-probe`, see LOG."""
    sample = np.random.default_rng(0).permutation(embedded.vocab_size)[:512]
    exceptions = [2790, 4424, 14379]
    ids = np.concatenate([np.setdiff1d(sample, exceptions), exceptions])
    found = probe_vocabulary(embedded, 24, ids)
    assert embedded.vocab_size == 49152
    assert (found.first[-3:] < 200).all()
    spiking = found.first[:-3] > 1000
    # 7 of 49,152 do not: more than two of 512 would be a one in a million sample.
    assert spiking.sum() >= len(spiking) - 2
    assert (found.later > 1000).mean() < 0.03
    assert np.median(found.later) < 200
