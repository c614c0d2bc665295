"""The load-time self-check refuses what it must, naming the layer, the difference and the limit."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny, token_ids
from torch import nn

from spikesink.access import access, families
from spikesink.access.families import FAMILIES, GPT_NEOX, ONE_NORM, SANDWICH, SEQUENTIAL, Layout
from spikesink.errors import UnsupportedModelError, VerificationError


class Scaled(nn.Module):
    """A module whose output reaches the residual scaled, behind the back of whoever hooks the module inside."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return 1.01 * self.inner(*args, **kwargs)


def test_what_holds_is_in_the_provenance():
    verification = access(tiny("llama")).provenance["verification"]
    assert 0 <= verification["largest_sum_difference"] < 1e-5
    assert 0 <= verification["largest_attention_difference"] < 1e-3
    assert 0 <= verification["largest_causality_difference"] < 1e-5


def test_a_write_that_does_not_add_up(monkeypatch):
    """Layer_index 1 adds 1.01 x its FFN's output: found at block 4, refused with the numbers."""
    model = tiny("llama")
    layer = model.model.layers[1]
    forward = type(layer).forward

    def scaled(self, hidden_states, **options):
        output = forward(self, hidden_states, **options)
        return output + 0.01 * output if self is layer else output

    monkeypatch.setattr(type(layer), "forward", scaled)
    with pytest.raises(VerificationError, match=r"Block 4 \(layer 1, FFN\): .*difference 0\.\d+, limit 1e-05"):
        access(model)


@pytest.mark.parametrize(("family", "wrong"), [("llama", GPT_NEOX), ("gemma2", SEQUENTIAL), ("gpt_neox", SEQUENTIAL)])
def test_a_wrong_layout_is_refused(monkeypatch, family, wrong):
    monkeypatch.setitem(FAMILIES, family, wrong)
    with pytest.raises(UnsupportedModelError):
        access(tiny(family))


@pytest.mark.parametrize(
    ("family", "attention", "changes"),
    [
        ("cohere", "self_attn", {}),
        ("cohere2", "self_attn", {}),
        ("phi", "self_attn", {}),
        ("persimmon", "self_attn", {"hidden_size": 32}),
        ("stablelm", "self_attn", {"use_parallel_residual": False}),
        ("stablelm", "self_attn", {"use_parallel_residual": True}),
        ("gpt_neox", "attention", {}),
        ("gpt_neox-sequential", "attention", {}),
        ("gptj", "attn", {}),
        ("vaultgemma", "self_attn", {}),
        ("llama", "self_attn", {}),
    ],
)
def test_a_layer_is_parallel_where_its_ffn_does_not_see_its_attention(family, attention, changes):
    """By doing: another write of attention changes what the FFN of the same layer reads, or does not."""
    model = tiny(family, **changes)
    layer = access(model).layers[0]
    ours = layer.parallel
    read = []
    keep = layer.layer.mlp.register_forward_pre_hook(lambda _module, args: read.append(args[0].clone()))
    model(token_ids())
    change = layer.layer.get_submodule(attention).register_forward_hook(lambda *given: (given[2][0] + 1, *given[2][1:]))
    model(token_ids())
    keep.remove(), change.remove()
    assert ours == torch.equal(*read)


def test_residuals_without_their_write_are_refused(monkeypatch):
    """Read at the one norm of a parallel layer, the residual after attention is the embedding, which needs no write."""
    monkeypatch.setattr(Layout, "parallel", lambda *_: False)
    with pytest.raises(VerificationError, match=r"Block 1 \(layer 0, attention\): .*difference inf"):
        access(tiny("cohere"))


@pytest.mark.parametrize("layout", [ONE_NORM, replace(SEQUENTIAL, two_norms_parallel=lambda _: True)])
def test_a_sequential_layer_is_not_taken_for_a_parallel_one(monkeypatch, layout):
    """Both writes of a layer add up in either; what its FFN reads does not."""
    monkeypatch.setitem(FAMILIES, "llama", layout)
    with pytest.raises(VerificationError, match=r"Block 2 \(layer 0, FFN\): .*difference [0-9.]+, limit 1e-05"):
        access(tiny("llama"))


def test_attention_that_is_not_the_model_s_own(monkeypatch):
    """Our backend with another scaling than the family's: refused before anything is measured."""
    from spikesink.access import attention

    honest = attention.attend

    def wrong(call, *others):
        return honest(attention.Call(**{**vars(call), "scaling": 1.1 * call.scaling}), *others)

    monkeypatch.setattr(attention, "attend", wrong)
    with pytest.raises(VerificationError, match=r"Block 1 \(layer 0, attention\): attention rebuilt"):
        access(tiny("llama"))


def test_a_model_that_sees_the_future(monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(model.config, "is_causal", False, raising=False)
    forward = model.model.layers[0].forward

    def leaking(hidden_states, **options):
        return forward(hidden_states + hidden_states.mean(1, keepdim=True), **options)

    monkeypatch.setattr(model.model.layers[0], "forward", leaking)
    with pytest.raises(VerificationError):
        access(model)


def test_an_unlisted_family_is_guessed_and_verified(monkeypatch):
    for family, layout in (("llama", SEQUENTIAL), ("gemma2", SANDWICH)):
        monkeypatch.delitem(FAMILIES, family)
        accessed = access(tiny(family))
        assert (accessed.layers[0].ffn.output_norm is None) == (layout is SEQUENTIAL)


def test_a_layer_that_no_layout_knows(monkeypatch):
    monkeypatch.delitem(FAMILIES, "opt")
    monkeypatch.setattr(families, "GUESSES", (SEQUENTIAL, SANDWICH))
    with pytest.raises(UnsupportedModelError, match=r"OPTDecoderLayer.*none of the layouts"):
        access(tiny("opt"))


def test_verification_leaves_the_model_as_it_was():
    model = tiny("mistral")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    access(model)
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.isfinite(model.eval()(token_ids()).logits).all()
