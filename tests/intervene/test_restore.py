"""Every intervention leaves the model as it was, bit for bit: nested, and after an exception."""

from contextlib import ExitStack

import pytest
import torch
from planted import close

from spikesink.errors import DoesNotApplyError
from spikesink.intervene import INTERVENTIONS, cut_amplifier, mask_sinks, pin_spikes, zero_spikes

NAMED = [(name, control) for name, made in INTERVENTIONS.items() for control in (None, *made.controls)]


def state(model):
    """Every bit of the weights, the hooks of every module, and how attention is computed."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return tensors, hooks, model.config._attn_implementation, [m.training for m in model.modules()]


def unchanged(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    # Compared as bits: -0.0 and 0.0, or two NaNs, must not pass for each other.
    for name, tensor in before[0].items():
        assert torch.equal(tensor.view(torch.int32), after[0][name].view(torch.int32)), name


@pytest.mark.parametrize(("name", "control"), NAMED)
def test_restored(case, name, control):
    before = state(case.model)
    ids = case.ids.clone()
    ids[:, 0] = 1
    plain = case.logits(ids=ids)
    with INTERVENTIONS[name](case.accessed, case.targets, control=control) as _:
        assert state(case.model)[1] != before[1] or not torch.equal(
            case.model.state_dict()["model.layers.0.mlp.down_proj.weight"],
            before[0]["model.layers.0.mlp.down_proj.weight"],
        )
        changed = case.logits(ids=ids)
    unchanged(before, state(case.model))
    assert torch.equal(case.logits(ids=ids), plain)
    assert changed.shape != plain.shape or not close(changed, plain)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_restored_after_an_exception(case, name):
    before = state(case.model)
    with pytest.raises(KeyError, match="mine"), INTERVENTIONS[name](case.accessed, case.targets):
        raise KeyError("mine")
    unchanged(before, state(case.model))


def _open_many(case):
    targets = case.targets
    with ExitStack() as stack:
        stack.enter_context(cut_amplifier(case.accessed, targets))
        stack.enter_context(zero_spikes(case.accessed, targets))
        stack.enter_context(cut_amplifier(case.accessed, targets, control="random_entries", seed=1))
        stack.enter_context(cut_amplifier(case.accessed, targets))
        stack.enter_context(mask_sinks(case.accessed, targets))
        stack.enter_context(pin_spikes(case.accessed, targets))
        case.logits()
        raise KeyError("mine")


def test_nested_and_closed_by_an_exception(case):
    before = state(case.model)
    with pytest.raises(KeyError, match="mine"):
        _open_many(case)
    unchanged(before, state(case.model))


def test_nested_edits_add_up(case):
    both = case.logits(zero_spikes(case.accessed, case.targets), mask_sinks(case.accessed, case.targets))
    one = case.logits(zero_spikes(case.accessed, case.targets))
    other = case.logits(mask_sinks(case.accessed, case.targets))
    assert not close(both, one)
    assert not close(both, other)


def test_a_hugging_face_model_does(case):
    with zero_spikes(case.model, case.targets):
        changed = case.logits()
    assert close(changed, case.logits(zero_spikes(case.accessed, case.targets)))


def test_a_refusal_inside_the_forward_leaves_nothing(case):
    before = state(case.model)
    with pytest.raises(DoesNotApplyError, match="BOS"):
        case.logits(INTERVENTIONS["drop_bos"](case.accessed, case.targets))
    unchanged(before, state(case.model))
