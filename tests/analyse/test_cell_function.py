"""What a study's cell measures of its model, against the scan and the interventions that it is made of."""

import statistics

import pytest
import torch
from tiny import spiking, token_ids

from spikesink import find, scan
from spikesink.access import access
from spikesink.analyse.anatomy import heads
from spikesink.analyse.evaluation import evaluate
from spikesink.analyse.function import function_of
from spikesink.intervene import freeze_spikes, zero_spikes
from spikesink.measure.sink_tokens import SinkTokens


def test_costs_are_of_the_other_half_and_heads_of_the_first(monkeypatch):
    accessed, ids = access(spiking(num_hidden_layers=4)), token_ids(sequences=10, tokens=19)
    first = torch.zeros(5, 19, dtype=torch.bool)
    first[:, 0] = True
    monkeypatch.setattr(heads, "sink_tokens", lambda _: SinkTokens(first, first.int(), 0.3, 1))
    found = function_of(accessed, ids)
    targets = find(accessed, ids[:5])
    assert (found.spike_tokens, found.same_context) == (targets.spike_tokens / 5, targets.same_context)
    assert (targets.edit_block, found.attention_behind) == (2, 3)
    plain = evaluate(accessed, ids[5:], loss_only=True).losses
    for cost, edit in ((found.freeze_nats, freeze_spikes), (found.zero_nats, zero_spikes)):
        edited = evaluate(accessed, ids[5:], edit(accessed, targets), loss_only=True).losses
        assert cost == pytest.approx(float((edited - plain).mean()), abs=1e-6)
    section = scan(accessed, ids[:5], measures=("heads",)).heads
    assert found.write_with_mass == pytest.approx(statistics.fmean(head.mass_with_write for head in section.heads))
    distance = next(row for row in section.correlations if row.other == "distance")
    assert found.distance_with_mass == pytest.approx(distance.within_layers.value)
    assert found.sink_head_distance is None, "no head gives its sink as much as the criterion asks"
