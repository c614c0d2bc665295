"""Remedies as deployed: rows against plain code, a prefix against a cache, and what exports take from the record."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import MARKED, spiking, tiny, token_ids

import spikesink
from spikesink.access import access
from spikesink.access.linears import editing_inputs, find_linears
from spikesink.analyse.evaluation import Evaluator
from spikesink.analyse.finding import find
from spikesink.analyse.remedies import _prefix, _spikes_behind
from spikesink.analyse.resume import FinishedPasses
from spikesink.intervene.prefix import load_prefix, prefix_states
from spikesink.intervene.quantise import fake_quantise
from spikesink.measure.sinks import SinkCriteria

IDS = token_ids(14, 17)
HELD_OUT = 5
SCALES = ("dynamic", "static")


@pytest.fixture(scope="module")
def accessed():
    return access(spiking())


@pytest.fixture(scope="module")
def record(accessed):
    return spikesink.dissociate(accessed, IDS, which="none,remedies", held_out=HELD_OUT, batch_size=3)


def cost(record, scales, remedy):
    return next(row for row in record.remedies.rows if (row.scales, row.remedy) == (scales, remedy)).perplexity.value


def test_the_prefix_is_what_spikes_most_and_spikes_are_counted(record):
    evaluated, held = IDS[:-HELD_OUT], IDS[-HELD_OUT:]
    ids, counts = held[held < MARKED].unique(return_counts=True)
    section = record.remedies
    assert section.prefix_ids[0] == int(ids[counts.argmax()])
    assert section.spike_tokens == pytest.approx((evaluated < MARKED).sum(1).float().mean())
    assert section.first_token_spikes == pytest.approx((evaluated[:, 0] < MARKED).float().mean())
    assert {row.remedy for row in section.rows} == {None, "prefix", "smoothing", "rotation"}


@pytest.mark.parametrize("remedy", [None, "prefix"])
def test_rows_are_what_a_cache_and_plain_rounding_give(accessed, record, remedy):
    ids = record.remedies.prefix_ids if remedy else []
    sums, predictions = 0.0, 0

    def rounded(_site, entering):
        return fake_quantise(entering.flatten(0, 1), 8, "tensor").view_as(entering)

    for rows in IDS[:-HELD_OUT].split(3):
        cache = load_prefix(prefix_states(accessed, ids), accessed.model, rows)[0] if ids else None
        with torch.no_grad(), editing_inputs(find_linears(accessed), rounded):
            logits = accessed.model(rows, past_key_values=cache).logits[:, :-1]
        losses = -logits.log_softmax(-1).gather(-1, rows[:, 1:, None])
        sums, predictions = sums + float(losses.sum()), predictions + losses.numel()
    assert cost(record, "dynamic", remedy) == pytest.approx(np.exp(sums / predictions), rel=1e-3)


def test_maxima_are_of_the_held_out_tokens_with_spikes_and_without(accessed, record):
    held, shown = IDS[-HELD_OUT:], {}

    def note(site, entering):
        shown[site.name] = entering.abs()
        return entering

    with torch.no_grad(), editing_inputs(find_linears(accessed), note):
        accessed.model(held)
    name = "model.layers.1.mlp.down_proj"
    with_spikes, without = (record.arrays[f"{start}.{name}"] for start in ("input_max", "input_max_without_spikes"))
    np.testing.assert_allclose(with_spikes, shown[name].flatten(0, 1).amax(0), rtol=1e-4)
    np.testing.assert_allclose(without, shown[name][held >= MARKED].amax(0), rtol=1e-4)
    assert (without <= with_spikes).all() and (without < with_spikes).any()
    states = prefix_states(accessed, record.remedies.prefix_ids)
    np.testing.assert_allclose(record.arrays["prefix.values.2"], states["values.2"], rtol=1e-5)


def test_the_page_and_the_terminal_show_them(record):
    from spikesink.report.remedies import remedies_part

    part = remedies_part(record)
    rows = [(row[0], row[1]) for row in part.tables[0].rows]
    assert rows == [(name, scales) for name in ("none", "prefix", "smoothing", "rotation") for scales in SCALES]
    assert f"Behind the prefix {record.remedies.prefix_ids[0]}" in part.note


def first_spikes(family="llama", **changes):
    """A model in which the first token spikes, whatever it is, and no other."""
    model = tiny(family, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(6)
    first = torch.zeros(24).index_fill(0, torch.tensor(3), 500.0)
    layers = model.model.layers if family == "llama" else model.transformer.h
    layers[0].mlp.register_forward_hook(
        lambda _, args, out: torch.cat([out[:, :1] + first, out[:, 1:]], 1) if out.ndim == 3 else None
    )
    return model


def evaluator_of(accessed, ids, batch_size=None):
    """Of all but the last four sequences, which the spikes were found on."""
    targets = find(accessed, ids[-4:])
    return Evaluator(accessed, ids[:-4], targets, FinishedPasses(), SinkCriteria(), batch_size)


@pytest.mark.parametrize("begins", ["all", "some", "none"])
def test_a_prefixs_own_spike_is_not_the_texts(begins, word_tokenizer):
    """Behind one token nothing spikes, whether the text begins with that token or not, in batches of any size."""
    ids = token_ids(8, 12).clamp(min=MARKED)
    ids[{"all": slice(None), "some": slice(None, None, 2), "none": slice(0)}[begins], 0] = 1
    accessed = replace(access(first_spikes()), tokenizer=word_tokenizer)
    evaluator = evaluator_of(accessed, ids, batch_size=1)
    facts, chosen = _prefix(evaluator, ids[-4:])
    assert chosen == (1,)
    assert (facts["spike_tokens"], facts["first_token_spikes"]) == (1, 1)
    assert (facts["spike_tokens_behind_prefix"], facts["first_token_spikes_behind_prefix"]) == (0, 0)


def test_which_tokens_spike_behind_a_prefix(word_tokenizer):
    """Marked tokens do, wherever they stand, but for BOS that the prefix already has."""
    ids = token_ids(8, 12, seed=3)
    ids[:, 0], ids[1, 5], ids[2, 1] = 1, 2, 4
    accessed = replace(access(spiking()), tokenizer=word_tokenizer)
    evaluator = evaluator_of(accessed, ids)
    expected = ids[:-4] < MARKED
    assert torch.equal(_spikes_behind(evaluator, ids[:-4], (9, 1)), expected)
    expected[:, 0] = False
    assert torch.equal(_spikes_behind(evaluator, ids[:-4], (1, 2)), expected)
    assert expected.sum() == 2


@pytest.mark.parametrize(("room", "prefix"), [(0, 0), (1, 1)])
def test_a_prefix_is_no_longer_than_the_models_positions_allow(room, prefix):
    ids = token_ids(8, 16)
    positions = {"n_positions": 16 + room, "max_position_embeddings": 16 + room}
    section = spikesink.dissociate(
        access(first_spikes("gpt2", **positions)), ids, which="none,remedies", held_out=4
    ).remedies
    assert len(section.prefix_ids) == prefix
    assert section.skipped[0].startswith("prefix: sequences would have 17 tokens") == (room == 0)


def test_what_does_not_apply_is_left_out_with_the_reason():
    record = spikesink.dissociate(access(tiny("gpt2")), IDS[:6], which="none,remedies", held_out=2)
    assert [row.remedy for row in record.remedies.rows] == [None, None]
    assert [line.split(":")[0] for line in record.remedies.skipped] == ["prefix", "smoothing", "rotation"]
