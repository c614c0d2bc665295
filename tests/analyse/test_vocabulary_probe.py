"""The vocabulary probe and attention left out: against whole forward passes, and on the embedded model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import VOCAB, tiny, token_ids

from spikesink.access import access, full_batch, observing, run
from spikesink.analyse.anatomy.trigger import _free_from, attention_ablation
from spikesink.analyse.anatomy.vocabulary_probe import LATER_LENGTH, _behind, probe_vocabulary
from spikesink.analyse.passes import Criteria
from spikesink.analyse.scan import measure
from spikesink.errors import DoesNotApplyError


class Keep:
    def __init__(self, block=3):
        self.block = block

    def on_residual(self, block, hidden):
        if block == self.block:
            self.hidden = hidden.clone()
        if block == 0:
            self.embedding = hidden.clone()


def test_the_probe_is_a_whole_forward_of_each_item_alone():
    accessed = access(tiny("llama"))
    probed = probe_vocabulary(accessed, 3, batch_tokens=10)
    assert probed.ids.tolist() == list(range(VOCAB))
    keep = Keep()
    for item in (0, 41, 96):
        with observing(accessed, [keep]):
            run(accessed, full_batch(torch.tensor([[item]])))
        assert probed.first[item] == pytest.approx(float(keep.hidden.abs().max()), rel=1e-5)
        assert probed.embedding_norm[item] == pytest.approx(float(keep.embedding.norm()), rel=1e-5)


def test_the_control_measures_every_item_once_behind_a_prefix():
    accessed = access(tiny("llama"))
    items = np.arange(0, VOCAB, 2)
    probed = probe_vocabulary(accessed, 3, items, batch_tokens=40)
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
    assert probed.later == pytest.approx(np.array([measured[i] for i in range(len(items))]), rel=1e-5)


def test_early_attention_left_out_row_by_row():
    """Against whole forward passes whose attention projections are zero; thresholds between the items' magnitudes."""
    accessed = access(tiny("llama"))
    scanned, _ = measure(accessed, token_ids(sequences=3, tokens=9), Criteria())
    with pytest.raises(DoesNotApplyError, match="no spikes"):
        attention_ablation(scanned, 5, 1.0, lambda *_: None)
    scanned = replace(scanned, spike=replace(scanned.spike, has_spikes=True))
    with pytest.raises(DoesNotApplyError, match="No attention block"):
        attention_ablation(scanned, 1, 1.0, lambda *_: None)
    silenced = {(): None, (1, 3): None, (3,): None, (1,): None}
    keep = Keep(4)
    for layers in silenced:
        model = tiny("llama")
        with torch.no_grad():
            for block in layers:
                model.model.layers[block // 2].self_attn.o_proj.weight.zero_()
        plain = access(model)
        with observing(plain, [keep]):
            run(plain, full_batch(torch.arange(VOCAB)[:, None]))
        silenced[layers] = keep.hidden.abs().amax(-1)[:, 0]
    threshold = float(silenced[()].quantile(0.3))
    expected = {layers: float((magnitude > threshold).float().mean()) for layers, magnitude in silenced.items()}
    probed = attention_ablation(scanned, 4, threshold, lambda *_: None)
    assert (probed.items, probed.block) == (VOCAB, 4)
    assert probed.spiking_share == pytest.approx(expected[()])
    rows = {(row.first_block, row.last_block): row.spiking_share for row in probed.rows}
    assert rows == {
        (1, 3): pytest.approx(expected[1, 3]),
        (3, 3): pytest.approx(expected[3,]),
        (1, 1): pytest.approx(expected[1,]),
    }
    assert len(set(expected.values())) == 4
    with pytest.raises(DoesNotApplyError, match="None of 97 items alone at position 0 exceeds 999 after block 4"):
        attention_ablation(scanned, 4, 999.0, lambda *_: None)


@pytest.mark.parametrize(
    ("shares", "free"), [([0.1, 0.95, 1.0], 3), ([0.95, 0.9, 0.99], 1), ([0.95, 0.8, 0.99], 5), ([1.0, 1.0, 0.5], None)]
)
def test_attention_is_free_from_where_all_later_rows_keep_the_items(shares, free):
    assert _free_from([1, 3, 5], shares, 0.9) == free


@pytest.mark.embedded
def test_nearly_every_item_of_the_embedded_model_spikes_at_position_0(embedded):
    """A fixed sample; the whole vocabulary (49,145 of 49,152) is `make bench-probe`, see LOG."""
    sample = np.random.default_rng(0).permutation(embedded.vocab_size)[:512]
    exceptions = [2790, 4424, 14379]
    ids = np.concatenate([np.setdiff1d(sample, exceptions), exceptions])
    probed = probe_vocabulary(embedded, 24, ids)
    assert embedded.vocab_size == 49152
    assert (probed.first[-3:] < 200).all()
    spiking = probed.first[:-3] > 1000
    # 7 of 49,152 do not: more than two of 512 would be a one in a million sample.
    assert spiking.sum() >= len(spiking) - 2
    assert (probed.later > 1000).mean() < 0.03
    assert np.median(probed.later) < 200
