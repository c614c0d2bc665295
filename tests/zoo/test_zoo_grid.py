"""What must hold for every variant: causality, gradients, cache, backends, padding, files, generation."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM
from zoo_grid import CHANGES, decoder, spec_of, token_ids

from spikesink.zoo import Softmax, build


@pytest.fixture(scope="module", params=CHANGES)
def case(request):
    return request.param, decoder(spec_of(request.param))


def test_differs_from_the_baseline(case):
    name, _ = case
    torch.manual_seed(0)
    fresh = build(spec_of(name)).eval()
    torch.manual_seed(0)
    base = build(spec_of("baseline")).eval()
    with torch.no_grad():
        difference = (fresh(token_ids()).logits - base(token_ids()).logits).abs().max()
    assert (float(difference) > 1e-4) == (name != "baseline")


def test_every_parameter_gets_a_gradient(case):
    _, model = case
    model.zero_grad()
    ids = token_ids(tokens=9)
    model(ids, labels=ids).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.zero_grad()


def test_the_future_changes_nothing(case):
    _, model = case
    ids = token_ids(tokens=11)
    for position in (10, 4, 1):
        changed = ids.clone()
        changed[:, position:] = (changed[:, position:] + 7) % model.config.vocab_size
        with torch.no_grad():
            one, other = model(ids).logits, model(changed).logits
        assert torch.equal(one[:, :position], other[:, :position]) or torch.allclose(
            one[:, :position], other[:, :position], atol=1e-5
        )
        assert not torch.allclose(one[:, position:], other[:, position:], atol=1e-3)


@pytest.mark.parametrize("chunks", [(1,) * 9, (4, 1, 3, 1)])
def test_cached_decoding_equals_full_decoding(case, chunks):
    _, model = case
    ids = token_ids(tokens=9)
    pieces, cache, start = [], None, 0
    with torch.no_grad():
        full = model(ids).logits
        for length in chunks:
            # Several tokens on top of a cache need the mask of all that came before.
            mask = torch.ones(2, start + length, dtype=torch.long)
            out = model(ids[:, start : start + length], cache=cache, use_cache=True, attention_mask=mask)
            pieces.append(out.logits)
            cache, start = out.cache, start + length
    assert torch.allclose(torch.cat(pieces, 1), full, atol=2e-4, rtol=1e-4)


def test_sdpa_equals_eager(case):
    name, model = case
    ids = token_ids()
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        fused = model(ids).logits
        model.set_attn_implementation("eager")
        by_the_book = model(ids).logits
    model.set_attn_implementation("sdpa")
    assert torch.allclose(fused, by_the_book, atol=1e-4, rtol=1e-4), name


def test_padding_on_the_left_does_not_count(case):
    name, model = case
    ids = token_ids(tokens=7)
    padded = torch.cat([torch.full((2, 3), 5), ids], 1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 7)], 1).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model(ids).logits
        shifted = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    assert torch.allclose(plain, shifted, atol=2e-4, rtol=1e-4), name


def test_saves_loads_and_generates(case, tmp_path):
    _, model = case
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = token_ids(tokens=5)
    assert again.config.decoder_spec == model.config.decoder_spec
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-6)
    written = again.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    greedy = ids
    for _ in range(4):
        with torch.no_grad():
            greedy = torch.cat([greedy, again(greedy).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, greedy)


def test_hidden_states_and_attentions(case):
    name, model = case
    ids = token_ids(tokens=6)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(ids, output_hidden_states=True, output_attentions=True)
    model.set_attn_implementation("sdpa")
    spec = spec_of(name)
    assert len(out.hidden_states) == spec.n_layers + 1
    assert all(hidden.shape == (2, 6, spec.d_model) for hidden in out.hidden_states)
    assert len(out.attentions) == spec.n_layers
    virtual = getattr(spec.virtual_keys, "n", 0)
    assert all(weights.shape == (2, spec.n_heads, 6, 6 + virtual) for weights in out.attentions)
    if isinstance(spec.normaliser, Softmax):
        assert all(torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5) for weights in out.attentions)


def test_checkpointed_gradients_are_the_gradients(case):
    _, model = case
    ids = token_ids(tokens=6)

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.activation_checkpointing_enable()
    model.train()
    checkpointed = gradients()
    model.activation_checkpointing_disable()
    model.eval()
    model.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(plain, checkpointed, strict=True))


def test_starting_loss_is_that_of_guessing(case):
    name, _ = case
    torch.manual_seed(3)
    model = build(spec_of(name)).eval()
    ids = token_ids(8, 32)
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    # Under fan_in the logits begin with variance 1, which costs half a nat.
    expected = math.log(model.config.vocab_size) + (0.5 if name == "fan-in-init" else 0.0)
    assert loss == pytest.approx(expected, abs=0.15)
