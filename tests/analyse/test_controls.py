"""Models without spikes and sinks are told so, and nothing is invented for them; one with both is not mistaken."""

import pytest
import torch
from control_models import SMALL, byte_sequences, random_model, trained_model

from spikesink import scan
from spikesink.access import access

RANDOM = {
    "llama": SMALL,
    "gpt2": {"vocab_size": 256, "n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gemma2": {**SMALL, "head_dim": 24},
    "gpt_neox": {**SMALL, "num_key_value_heads": None},
}


def nothing_found(record):
    summary = record.summary
    assert not summary.has_spikes
    assert not summary.has_sinks
    assert summary.sink_head_count == 0
    assert (summary.spike_channels, summary.spike_tokens) == ([], [])
    assert (summary.step_up_blocks, summary.step_down_blocks) == ([], [])
    assert not any(head.is_sink for head in record.sinks.heads)
    assert record.lifecycle.step_rule.reason == "no spikes"
    # Margins on both sides of the thresholds: the plain figures are there, and well below them.
    assert summary.max_over_median > 4
    assert 4 < record.spikes.token_ratio < 0.9 * record.spikes.token_ratio_min
    assert record.sinks.first_key_importance < 1.5 * record.sinks.uniform_first_key


@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_initialisation(family, seed):
    model = random_model(family, seed, **RANDOM[family])
    nothing_found(scan(access(model), byte_sequences(6, 64, seed)))


def test_a_random_model_whose_first_write_dwarfs_its_embedding():
    """Its largest over median passes the first threshold; no channel stands out in its tokens, so it has no spikes."""
    shape = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 5000}
    model = random_model("llama", 0, **{**SMALL, **shape})
    ids = torch.randint(0, 5000, (16, 64), generator=torch.Generator().manual_seed(5))
    record = scan(access(model), ids)
    assert record.summary.max_over_median > record.spikes.max_over_median_min
    nothing_found(record)


def test_a_small_model_trained_on_little_text():
    model, loss = trained_model()
    assert 1.5 < loss < 3.0, "it should have learned something"
    nothing_found(scan(access(model), byte_sequences(6, 64, seed=7)))


def test_a_large_overall_scale_is_no_spike():
    model = random_model("llama", **SMALL)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e4)
    record = scan(access(model), byte_sequences(6, 64, seed=3))
    assert record.summary.spike > 300
    nothing_found(record)


def test_short_sequences_make_no_sinks():
    """At T = 3 a uniform head gives its first key 0.61 of its attention: above epsilon, and no sink."""
    record = scan(access(random_model("llama", **SMALL)), byte_sequences(6, 3, seed=2))
    assert record.sinks.uniform_first_key > record.sinks.epsilon
    assert not record.summary.has_sinks
