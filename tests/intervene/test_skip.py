"""Skipping pinned tokens: the same logits as pinning alone, in every family, and the layers really see fewer tokens."""

from dataclasses import replace

import pytest
import torch
from planted import close
from tiny import tiny, token_ids

from spikesink.access import Batch, access, full_batch, observing, run
from spikesink.errors import InputError, UnsupportedModelError
from spikesink.intervene import Found, pin_spikes
from spikesink.measure.sinks import SinkMeasure

FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "olmo2", "gpt2", "gpt_neox", "granite", "mixtral", "opt-post-norm"]


class First:
    def on_residual(self, block, hidden):
        if block == 2:
            self.hidden = hidden.clone()


def found_in(accessed, ids, per_row):
    """Spike tokens are those with the largest magnitude in channel 3 after block 2; `per_row` at least in every row."""
    seen = First()
    with observing(accessed, [seen]):
        run(accessed, full_batch(ids))
    value = seen.hidden[..., 3].abs()
    limit = float(value.topk(per_row, dim=1).values[:, -1].min()) * 0.999
    drawn = torch.Generator().manual_seed(2)
    width = seen.hidden.shape[-1]
    return Found(
        has_spikes=True,
        spike=1.0,
        edit_block=2,
        step_up_block=2,
        step_down_block=8,
        channels=(3,),
        magnitude_min=limit,
        spike_states={block: torch.randn(width, generator=drawn) for block in range(2, 9)},
        ordinary_states={block: torch.randn(width, generator=drawn) for block in range(2, 9)},
    )


def logits(accessed, batch, context):
    with context, observing(accessed, []):
        return run(accessed, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_skipping_gives_the_logits_of_pinning(family):
    accessed = access(tiny(family, num_hidden_layers=4, n_layer=4))
    ids = token_ids(sequences=3, tokens=13)
    found = found_in(accessed, ids, per_row=2)
    batch = full_batch(ids)
    pinned = logits(accessed, batch, pin_spikes(accessed, found))
    skipped = logits(accessed, batch, pin_spikes(accessed, found, skip=True))
    assert close(skipped, pinned)
    assert not close(pinned, logits(accessed, batch, observing(accessed, [])))


def test_layers_between_see_fewer_tokens():
    accessed = access(tiny("llama", num_hidden_layers=4))
    ids = token_ids(sequences=3, tokens=13)
    found = found_in(accessed, ids, per_row=2)
    lengths = {}
    handles = [
        layer.layer.mlp.register_forward_pre_hook(lambda _, args, i=i: lengths.__setitem__(i, args[0].shape[1]))
        for i, layer in enumerate(accessed.layers)
    ]
    logits(accessed, full_batch(ids), pin_spikes(accessed, found, skip=True))
    for handle in handles:
        handle.remove()
    # Blocks 3 to 6 lie wholly between the step-up block 2 and the step-down block 8; block 7 does not.
    assert lengths == {0: 13, 1: 11, 2: 11, 3: 13}


def test_right_padding_and_rows_with_different_numbers_of_spikes():
    accessed = access(tiny("llama", num_hidden_layers=4))
    ids = token_ids(sequences=3, tokens=13)
    valid = torch.ones(3, 13, dtype=torch.bool)
    valid[1, 9:] = False
    found = found_in(accessed, ids, per_row=1)
    batch = Batch(ids, valid)
    pinned = logits(accessed, batch, pin_spikes(accessed, found))
    assert close(logits(accessed, batch, pin_spikes(accessed, found, skip=True))[valid], pinned[valid])


def test_no_spike_token_in_a_row_skips_nothing():
    accessed = access(tiny("llama", num_hidden_layers=4))
    ids = token_ids(sequences=3, tokens=13)
    found = replace(found_in(accessed, ids, per_row=1), magnitude_min=1e9)
    plain = logits(accessed, full_batch(ids), observing(accessed, []))
    assert torch.equal(logits(accessed, full_batch(ids), pin_spikes(accessed, found, skip=True)), plain)


def test_refusals():
    accessed = access(tiny("llama", num_hidden_layers=4))
    ids = token_ids(sequences=3, tokens=13)
    found = found_in(accessed, ids, per_row=2)
    with pytest.raises(InputError, match="max_tokens"):
        logits(accessed, full_batch(ids), pin_spikes(accessed, found, skip=True, max_tokens=12))
    with (
        pytest.raises(UnsupportedModelError, match="without skip"),
        pin_spikes(accessed, found, skip=True),
        observing(accessed, [SinkMeasure()]),
    ):
        run(accessed, full_batch(ids))
    left = torch.ones(3, 13, dtype=torch.bool)
    left[0, 0] = False
    with pytest.raises(InputError, match="pad on the right"):
        logits(accessed, Batch(ids, left), pin_spikes(accessed, found, skip=True))
