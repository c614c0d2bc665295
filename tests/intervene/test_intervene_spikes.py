"""Every intervention on spikes against a Llama written out by hand with the same change."""

from dataclasses import replace

import pytest
import torch
from hand_llama import Hand
from planted import EDIT_BLOCK, STEP_DOWN, close
from tiny import tiny, token_ids

from spikesink.access import access, full_batch, observing, run
from spikesink.errors import DoesNotApplyError, InputError
from spikesink.intervene import (
    Targets,
    clip_spikes,
    cut_amplifier,
    freeze_spikes,
    mean_spikes,
    normalise_write,
    pin_spikes,
    project_out_direction,
    shrink_spikes,
    zero_spikes,
)
from spikesink.intervene.base import random_tokens, seeded


def after_edit_block(change):
    return lambda block, hidden: change(hidden.clone()) if block == EDIT_BLOCK else hidden


def elements(case, value):
    """The change that gives every spike element `value(old, channel)`."""

    def change(hidden):
        for b, t, c in (hidden.abs() >= case.targets.magnitude_min).nonzero().tolist():
            hidden[b, t, c] = value(hidden[b, t, c], c)
        return hidden

    return after_edit_block(change)


def test_the_hand_written_model_is_the_model(case):
    assert close(case.logits(), case.plain)
    assert 0 < int(case.spikes.sum()) < case.spikes.numel()


def test_zero(case):
    ours = case.logits(zero_spikes(case.accessed, case.targets))
    assert close(ours, Hand(case.model, residual=elements(case, lambda old, c: 0.0))(case.ids))
    assert not close(ours, case.plain)


def test_mean_of_other_prompts(case):
    state = case.targets.spike_states[EDIT_BLOCK]
    ours = case.logits(mean_spikes(case.accessed, case.targets))
    assert close(ours, Hand(case.model, residual=elements(case, lambda old, c: state[c]))(case.ids))
    assert not close(ours, case.plain)


@pytest.mark.parametrize("bound", [None, 0.25])
def test_clip(case, bound):
    limit = case.targets.ordinary_max if bound is None else bound
    ours = case.logits(clip_spikes(case.accessed, case.targets, bound=bound))
    expected = Hand(case.model, residual=elements(case, lambda old, c: limit if old > 0 else -limit))(case.ids)
    assert close(ours, expected)
    assert not close(ours, case.plain)


def test_freeze(case):
    def change(hidden):
        for b, t in case.spikes.nonzero().tolist():
            hidden[b, t] = case.targets.spike_states[EDIT_BLOCK]
        return hidden

    ours = case.logits(freeze_spikes(case.accessed, case.targets))
    assert close(ours, Hand(case.model, residual=after_edit_block(change))(case.ids))
    assert not close(ours, case.plain)


def pinned(case):
    def residual(block, hidden):
        hidden = hidden.clone()
        if EDIT_BLOCK <= block < STEP_DOWN:
            for b, t in case.spikes.nonzero().tolist():
                hidden[b, t] = case.targets.spike_states[block]
        return hidden

    return Hand(case.model, residual=residual)(case.ids)


def test_pin(case):
    ours = case.logits(pin_spikes(case.accessed, case.targets))
    assert close(ours, pinned(case))
    assert not close(ours, case.logits(freeze_spikes(case.accessed, case.targets)))


def test_cut_amplifier(case):
    def down(block, weight):
        weight = weight.clone()
        if block == EDIT_BLOCK:
            for channel, neuron in case.targets.amplifier:
                weight[channel, neuron] = 0.0
        return weight

    ours = case.logits(cut_amplifier(case.accessed, case.targets))
    assert close(ours, Hand(case.model, down=down)(case.ids))
    assert not close(ours, case.plain)


def test_project_out_direction(case):
    norm = case.model.model.layers[0].post_attention_layernorm
    axis = case.targets.direction

    def normed(block, bare, scaled):
        return (bare - (bare @ axis)[..., None] * axis) * norm.weight if block == EDIT_BLOCK else scaled

    ours = case.logits(project_out_direction(case.accessed, case.targets))
    assert close(ours, Hand(case.model, normed=normed)(case.ids))
    assert not close(ours, case.plain)


def test_project_out_direction_leaves_attention_that_shares_the_norm():
    """Cohere's attention and FFN read one norm: only the FFN's write changes, to what its module makes by hand."""
    model = tiny("cohere")
    accessed, ids, layer = access(model), token_ids(), model.model.layers[1]
    axis = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(0)), dim=0)
    targets = Targets(True, 1.0, 4, 4, None, channels=(3,), magnitude_min=1.0, direction=axis)
    before, after = Kept(), Kept()
    with observing(accessed, [before]):
        run(accessed, full_batch(ids))
    with project_out_direction(accessed, targets), observing(accessed, [after]):
        run(accessed, full_batch(ids))
    entering = before.residuals[2].double()
    centred = entering - entering.mean(-1, keepdim=True)
    bare = centred / (centred.pow(2).mean(-1, keepdim=True) + layer.input_layernorm.variance_epsilon).sqrt()
    with torch.no_grad():
        expected = layer.mlp(((bare - (bare @ axis.double())[..., None] * axis) * layer.input_layernorm.weight).float())
    assert all(torch.equal(before.writes[block], after.writes[block]) for block in (1, 2, 3))
    assert close(after.writes[4], expected) and not close(after.writes[4], before.writes[4])


def test_normalise_write(case):
    def write(block, written):
        if block != EDIT_BLOCK:
            return written
        rms = written.pow(2).mean(-1).sqrt()
        typical = torch.stack([row.sort().values[(len(row) - 1) // 2] for row in rms])
        return written / rms[..., None] * typical[:, None, None]

    ours = case.logits(normalise_write(case.accessed, case.targets))
    assert close(ours, Hand(case.model, write=write)(case.ids))
    assert not close(ours, case.plain)


@pytest.mark.parametrize("control", [None, "random_tokens", "random_blocks"])
def test_shrink_spikes(case, control):
    """At the tokens that spike without it, the step blocks' writes are divided; a control takes as many others."""
    chosen, blocks = case.spikes, [EDIT_BLOCK, STEP_DOWN]
    if control == "random_tokens":
        chosen = random_tokens(case.spikes, seeded(3))
        assert chosen.sum(1).tolist() == case.spikes.sum(1).tolist() and not bool((chosen & case.spikes).any())
    if control == "random_blocks":
        later = [3, 4, 5]
        blocks = [later[index] for index in torch.randperm(3, generator=seeded(3))[:2].tolist()]

    def write(block, written):
        return torch.where(chosen[..., None], written / 7, written) if block in blocks else written

    ours = case.logits(shrink_spikes(case.accessed, case.targets, strength=7, control=control, seed=3))
    assert case.accessed.n_blocks == 6 and close(ours, Hand(case.model, write=write)(case.ids))
    assert not close(ours, case.plain)


@pytest.mark.parametrize("strength", [0.5, float("nan"), float("inf")])
def test_a_strength_that_means_nothing_is_refused(case, strength):
    with pytest.raises(InputError, match="expected 1 or more"):
        shrink_spikes(case.accessed, case.targets, strength=strength)


class Kept:
    """Keeps every residual and write."""

    def __init__(self):
        self.residuals, self.writes = {}, {}

    def on_residual(self, block, hidden):
        self.residuals[block] = hidden.clone()

    def on_write(self, block, write):
        self.writes[block] = write.clone()


class Residual:
    """Keeps the residual after one block."""

    def __init__(self, block):
        self.block, self.hidden = block, None

    def on_residual(self, block, hidden):
        if block == self.block:
            self.hidden = hidden.clone()


def edited(case, context):
    seen = Residual(EDIT_BLOCK)
    with context, observing(case.accessed, [seen]):
        run(case.accessed, full_batch(case.ids))
    return seen.hidden


def changed(case, context):
    return (edited(case, context) - case.before).abs() > 1e-4


def test_controls_of_elements_are_as_many_elsewhere(case):
    ordered = case.before.abs().flatten().sort(descending=True).values
    limit = float(ordered[4] + ordered[5]) / 2
    spikes = case.before.abs() >= limit
    assert int(spikes.sum()) == 5

    def control(name, seed):
        return changed(case, zero_spikes(case.accessed, case.targets, magnitude=limit, control=name, seed=seed))

    channels = control("random_channels", 1)
    assert torch.equal(channels.sum(-1), spikes.sum(-1))
    assert not channels[..., list(case.targets.channels)].any()
    tokens, other = control("random_tokens", 1), control("random_tokens", 2)
    assert not (tokens.any(-1) & spikes.any(-1)).any()
    assert torch.equal(tokens.any(-1).sum(1), spikes.any(-1).sum(1))
    assert not torch.equal(tokens, other)


def test_controls_of_states_are_as_many_elsewhere(case):
    tokens = changed(case, freeze_spikes(case.accessed, case.targets, control="random_tokens", seed=3)).any(-1)
    assert not (tokens & case.spikes).any()
    assert torch.equal(tokens.sum(1), case.spikes.sum(1))
    constant = edited(case, freeze_spikes(case.accessed, case.targets, control="random_constant"))[case.spikes]
    assert torch.allclose(constant, constant[0].expand_as(constant), atol=1e-5)
    assert constant[0].norm() == pytest.approx(float(case.targets.spike_states[EDIT_BLOCK].norm()), rel=1e-4)
    assert not close(constant[0], case.targets.spike_states[EDIT_BLOCK])


def test_control_of_weights_is_as_many_entries_of_the_same_rows(case):
    weight = case.model.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    with cut_amplifier(case.accessed, case.targets, control="random_entries", seed=4):
        entries = (weight != before).nonzero().tolist()
    assert sorted(row for row, _ in entries) == [5, 5, 17]
    assert not {tuple(entry) for entry in entries} & set(case.targets.amplifier)


def test_what_does_not_apply_says_why(case):
    with pytest.raises(DoesNotApplyError, match="no spikes"):
        zero_spikes(case.accessed, replace(case.targets, has_spikes=False))
    with pytest.raises(DoesNotApplyError, match=r"block 3 \(layer 1, attention\), not by an FFN"):
        cut_amplifier(case.accessed, replace(case.targets, step_up_block=3))
    with pytest.raises(DoesNotApplyError, match="no single block"):
        normalise_write(case.accessed, replace(case.targets, step_up_block=None))


def test_massive_channels_go_with_the_spikes(case):
    """Channel 9 holds less than a spike but meets the criterion: zeroed at spike tokens, unless told otherwise."""
    targets = replace(case.targets, massive_channels=(9,))

    def zeroed(block, hidden):
        if block != EDIT_BLOCK:
            return hidden
        gone = hidden.abs() >= targets.magnitude_min
        gone[..., 9] |= case.spikes
        return hidden.masked_fill(gone, 0.0)

    ours = case.logits(zero_spikes(case.accessed, targets))
    assert close(ours, Hand(case.model, residual=zeroed)(case.ids))
    plain = case.logits(zero_spikes(case.accessed, case.targets))
    assert not close(ours, plain)
    assert close(case.logits(zero_spikes(case.accessed, targets, magnitude=targets.magnitude_min)), plain)
