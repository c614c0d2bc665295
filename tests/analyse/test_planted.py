"""Further measures of planted spikes: in parallel layers, beside padding or a large scale, and too many to list."""

import numpy as np
import pytest
import torch
from naive import naive
from tiny import MARKED, VOCAB, spiking, tiny, token_ids

from spikesink import scan
from spikesink.access import access
from spikesink.analyse.anatomy import amplifier
from spikesink.analyse.anatomy.sample import spike_mask
from spikesink.analyse.passes import Criteria, Scan
from spikesink.analyse.scan import measure
from spikesink.measure import tallies

CHANNEL = 3


def begins_with_spike(lengths):
    """Ids (sequence, token) whose first token alone spikes in a `spiking` model, one sequence a length; no padding."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(MARKED, VOCAB, (length,), generator=generator) for length in lengths]
    for sequence in ids:
        sequence[0] = MARKED - 1
    return ids


def padded(sequences, width, side, padding):
    """Ids and what is real of them, both (sequence, width)."""
    ids, valid = torch.full((len(sequences), width), padding), torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        places = slice(width - len(sequence), width) if side == "left" else slice(len(sequence))
        ids[row, places], valid[row, places] = sequence, True
    return ids, valid


def parallel_spike(part, family="gpt_neox", layer=0):
    """A model of parallel layers in which this part of a layer writes 500 at the first token."""
    model = tiny(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.div_(6)

    def write(_module, _args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        if hidden.ndim == 3:  # its weights are read from vectors (vector, d)
            hidden[:, 0, CHANNEL] += 500
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    getattr(model.base_model.layers[layer], part).register_forward_hook(write)
    return model


@pytest.mark.parametrize(("part", "block"), [("attention", 1), ("mlp", 2)])
def test_every_measure_of_a_parallel_model_with_a_spike(part, block):
    """There is no residual after an odd block: what is read stands at the end of the layer, and before it."""
    model, ids = parallel_spike(part), token_ids(8, 24)
    record = scan(access(model), ids, measures="all")
    assert (record.summary.step_up_blocks, record.summary.spike_channels) == ([block], [CHANNEL])
    reference = naive(model, "gpt_neox", ids)
    largest = {at: reference.residuals[at].abs().amax((1, 2)) for at in (2, 4, 6)}
    edges = torch.maximum(largest[2], largest[6]) / torch.stack(list(largest.values())).amax(0)
    (first,) = [row for row in record.properties.properties if row.name == "i"]
    assert first.interval.value == pytest.approx(float(edges.mean()), rel=1e-5)
    assert (record.trigger.probe.block, record.normalisation.implicit.before_block) == (2, 0)
    alone = naive(model, "gpt_neox", torch.arange(VOCAB)[:, None]).residuals[2].abs().amax((1, 2))
    assert record.arrays["trigger.first"] == pytest.approx(alone.numpy(), rel=1e-4)
    rows = {(row.first_block, row.last_block): row.spiking_share for row in record.trigger.attention_ablation.rows}
    assert rows == {(1, 1): 0.0 if part == "attention" else 1.0}


@pytest.mark.parametrize(("layer", "before"), [(0, None), (1, [1])])
def test_attention_of_the_step_layer_itself_leads_no_token_to_it_where_layers_are_parallel(layer, before):
    """The FFN reads what enters the layer, without what its attention writes."""
    trigger = scan(access(parallel_spike("mlp", "cohere", layer)), token_ids(8, 24), measures=("trigger",)).trigger
    if before is None:
        assert trigger.first_token_map is None
        assert "No attention block comes before what the step-up block 2" in trigger.first_token_reason
    else:
        assert trigger.first_token_map.step_block == 2 * layer + 2
        assert [row.block for row in trigger.first_token_map.blocks] == before


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_text_is_measured_as_its_sequences_alone(side, word_tokenizer):
    """Those of the second batch are all shorter than the text: their range of keys is, too."""
    sequences = begins_with_spike([9, 7, 4, 5])
    model = spiking(channel=CHANNEL)
    ids, valid = padded(sequences, 9, side, padding=50)
    record = scan(model, ids, valid=valid, tokenizer=word_tokenizer, batch_size=2, measures=("trigger", "amplifier"))
    own, uniform = {"first": [], "other": []}, {"first": [], "other": []}
    for sequence in sequences:
        weights = naive(model, "llama", sequence[None]).attention[0][0].mean(0)
        for place, attention in enumerate(weights.diagonal().tolist()):
            own["other" if place else "first"].append(attention)
            uniform["other" if place else "first"].append(1 / (place + 1))
    classes = {group.name: group for group in record.trigger.self_sinking[0].classes}
    for name, expected in own.items():
        assert classes[name].tokens == len(expected)
        assert classes[name].self_attention.value == pytest.approx(np.mean(expected), rel=1e-4)
        assert classes[name].uniform == pytest.approx(np.mean(uniform[name]))
    assert record.trigger.first_token_map.n_later == 8 + 6 + 3 + 4
    assert [step.rank_one_first.n for step in record.amplifier.steps if step.channel == CHANNEL] == [4]


@pytest.mark.parametrize("scale", [0.0, 3000.0])
def test_a_late_block_of_large_scale_does_not_hide_the_spike(scale):
    """It has the largest magnitude, in every token, and so no spike: the spike is after block 2, in its channel."""
    model = spiking(channel=CHANNEL)
    added = torch.zeros(24)
    added[11] = scale
    model.model.layers[-1].mlp.register_forward_hook(lambda _module, _args, output: output + added)
    ids = torch.stack(begins_with_spike([24] * 6))
    record = scan(model, ids, measures=("properties", "normalisation", "amplifier", "trigger"))
    argmax = (6, 11) if scale else (2, CHANNEL)
    assert (record.summary.spike_block, record.summary.spike_channel) == argmax
    assert (record.spikes.verdict_block, record.summary.spike_channels) == (2, [CHANNEL])
    hidden = naive(model, "llama", ids).residuals[2]
    top = hidden.abs().amax((0, 1)).topk(3).indices.tolist()
    assert top[0] == CHANNEL
    assert record.properties.followed_channels == record.amplifier.followed_channels == top
    assert record.amplifier.spike_channel == record.trigger.first_token_map.channel == CHANNEL
    assert record.normalisation.implicit.block == record.trigger.probe.block == 2
    together = np.abs(np.corrcoef(hidden[..., top].abs().flatten(0, 1).T))[np.triu_indices(3, 1)].mean()
    (third,) = [row for row in record.properties.properties if row.name == "iii"]
    assert third.value == pytest.approx(together, rel=1e-4)


@pytest.mark.parametrize("listed", [3, 9])
def test_spike_tokens_that_are_too_many_to_list_are_all_known(listed, monkeypatch):
    """Of ten, the scan lists 3, having dropped the rest on the way, or 9; padding that would spike is none."""
    sequences = begins_with_spike([9, 7, 9, 5, 6, 8, 9, 9, 3, 9])
    ids, valid = padded(sequences, 9, "right", padding=MARKED - 1)
    accessed = access(spiking(channel=CHANNEL))
    names = ("normalisation", "properties", "trigger")
    every = scan(accessed, ids, valid=valid, batch_size=4, measures=names)
    assert every.spikes.token_count == 10
    monkeypatch.setattr(tallies, "MAX_CANDIDATES", listed)
    replayed = []
    replay = Scan.replay
    monkeypatch.setattr(Scan, "replay", lambda *args: (replayed.append(args[2]), replay(*args)))
    some = scan(accessed, ids, valid=valid, batch_size=4, measures=names)
    assert len(some.summary.spike_tokens) == listed
    assert some.normalisation.model_dump() == every.normalisation.model_dump()
    share = {row.name: row.value for row in some.properties.properties}["v"]
    assert share == pytest.approx(10 / int(valid.sum()))
    assert replayed.count("spike tokens") == 1, "one pass for all measures"
    scanned, _ = measure(accessed, ids, Criteria(), valid=valid, batch_size=4)
    expected = torch.zeros_like(valid)
    expected[:, 0] = True
    assert torch.equal(spike_mask(scanned), expected)


def test_ranks_and_outliers_of_a_mixture_are_those_of_the_whole_block(monkeypatch):
    """A channel is as strong as in its strongest expert; the median is over channels of all experts.

    One expert of the first layer is three times as strong as the others, in every channel alike.
    """
    monkeypatch.setattr(amplifier, "OUTLIER_OVER_MEDIAN_MIN", 2.0)
    model = tiny("mixtral")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[1] *= 3
    record = scan(model, token_ids(4, 24), measures="amplifier")
    norms, blocks, experts = (record.arrays[f"amplifier.{name}"] for name in ("norms", "blocks", "experts"))
    for block in record.amplifier.blocks:
        strongest = norms[blocks == block.block].max(0)
        for channel in block.channels:
            assert channel.rank == sum(other > strongest[channel.channel] for other in strongest)
    expected = {
        (int(block), int(expert), channel): float(norm) / float(np.median(norms[blocks == block]))
        for block, expert, row in zip(blocks, experts, norms, strict=True)
        for channel, norm in enumerate(row)
    }
    assert {(row.block, row.expert) for row in record.amplifier.outliers} == {(2, 1)}
    found = {(row.block, row.expert, row.channel): row.over_median for row in record.amplifier.outliers}
    assert 0 < len(found) == record.amplifier.outlier_count == sum(over >= 2 for over in expected.values())
    assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-5)
