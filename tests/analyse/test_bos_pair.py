"""With BOS and without: the same text, losses paired on the same predictions."""

import numpy as np
import pytest
import torch
from tiny import MARKED, spiking, tiny, token_ids

from spikesink.access import access
from spikesink.analyse.bos_pair import scan_bos_pair
from spikesink.data.tokens import Tokens
from spikesink.errors import InputError


def begun(bos=1, sequences=5, tokens=12):
    """Ids with BOS in front; in the text no token of those that spike."""
    ids = token_ids(sequences, tokens).clamp(min=MARKED)
    ids[:, 0] = bos
    return Tokens(ids=ids.numpy(), bos="always", bos_added=True)


def test_losses_are_paired_on_the_same_predictions():
    model, tokens = tiny("llama"), begun()
    with_bos, without, pair = scan_bos_pair(access(model), tokens, batch_size=2)
    ids = torch.from_numpy(tokens.ids)
    model.set_attn_implementation("eager")
    expected = []
    with torch.no_grad():
        for row in ids:
            both = [model(row[None, start:]).logits[0].double().log_softmax(-1) for start in (0, 1)]
            one = [-float(both[0][t - 1][row[t]]) for t in range(2, len(row))]
            other = [-float(both[1][t - 2][row[t]]) for t in range(2, len(row))]
            expected.append(np.mean(other) - np.mean(one))
    assert pair.loss_difference_nats.value == pytest.approx(np.mean(expected), rel=1e-4)
    assert pair.loss_difference_nats.n == 5
    assert pair.loss_difference_nats.low < pair.loss_difference_nats.value < pair.loss_difference_nats.high
    assert (with_bos.provenance.tokens["seq_len"], without.provenance.tokens["seq_len"]) == (12, 11)
    assert without.provenance.tokens["bos_added"] is False
    assert pair.with_bos.perplexity == with_bos.summary.perplexity
    assert pair.without_bos.sink_ratio == without.summary.sink_ratio


def test_a_model_that_spikes_at_bos_alone_is_told_so():
    _, _, pair = scan_bos_pair(access(spiking()), begun())
    assert (pair.with_bos.has_spikes, pair.without_bos.has_spikes) == (True, False)
    assert (pair.with_bos.first_spikes, pair.without_bos.first_spikes) == (1.0, 0.0)
    assert "Spikes are there only with BOS." in pair.sentence


def test_spike_tokens_that_are_not_all_listed_give_no_share(monkeypatch):
    monkeypatch.setattr("spikesink.analyse.scan.LISTED_TOKENS", 4)
    record, _, pair = scan_bos_pair(access(spiking()), begun())
    assert (len(record.summary.spike_tokens), record.spikes.token_count) == (4, 5)
    assert (pair.with_bos.first_spikes, pair.without_bos.first_spikes) == (None, 0.0)


@pytest.mark.parametrize("tokens", [Tokens(ids=np.zeros((2, 5), dtype=np.int64)), begun(tokens=2)])
def test_what_has_no_pair_is_refused(tokens):
    with pytest.raises(InputError, match="at least 3 tokens that begin with BOS"):
        scan_bos_pair(access(tiny("llama")), tokens)
