"""Every variant passes the load-time self-check, and scan's numbers are those of eager attention."""

import pytest
import torch
from zoo_grid import CHANGES, decoder, spec_of, token_ids

from spikesink import scan
from spikesink.access import access, full_batch, load, observing, run
from spikesink.zoo import AttentionFFN, NoVirtualKeys, Sigmoid, Softmax

VIRTUAL = [
    name
    for name in CHANGES
    if not isinstance(spec_of(name).virtual_keys, NoVirtualKeys)
    or not isinstance(spec_of(name).normaliser, Softmax | Sigmoid)
]


@pytest.fixture(scope="module", params=CHANGES)
def case(request):
    return request.param, decoder(spec_of(request.param))


def weights_of(model, ids):
    """Attention weights over the keys of tokens, by attention block, from the model's own eager attention."""
    spec = model.config.decoder_spec
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(ids, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    virtual = getattr(spec.virtual_keys, "n", 0)
    return [weights[..., virtual:] for weights in attentions]


def test_verifies_and_scans(case):
    name, model = case
    accessed = access(model)
    ids = token_ids(sequences=3, tokens=13)
    record = scan(accessed, ids, batch_size=2)
    assert accessed.provenance["arrangement"] == ("post_norm" if name == "post" else "sequential")
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert record.summary.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    in_place = isinstance(spec_of(name).ffn, AttentionFFN)
    blocks = [block for block in range(1, 7) if in_place or block % 2]
    assert record.arrays["attention_blocks"].tolist() == blocks
    for index, weights in enumerate(weights_of(model, ids)):
        expected = weights.double().mean(2).mean(0)
        row = record.arrays["attention_blocks"].tolist().index(2 * index + 1)
        ours = torch.from_numpy(record.arrays["key_importance"][row]).double()
        assert torch.allclose(ours, expected, atol=3e-6, rtol=1e-4)
    assert (record.sinks.virtual_mass is not None) == (name in VIRTUAL)


@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_keys_are_reported_apart(name):
    spec = spec_of(name)
    model = decoder(spec)
    ids = token_ids(tokens=9)
    record = scan(access(model), ids)
    kept = [weights.double().sum(-1) for weights in weights_of(model, ids)]
    if isinstance(spec.ffn, AttentionFFN):
        return
    expected = torch.stack([1 - mass.mean() for mass in kept]).mean()
    assert 0.01 < float(expected) < 0.99
    assert record.sinks.virtual_mass == pytest.approx(float(expected), abs=1e-5)


def test_residuals_are_those_of_the_tokens(case):
    """Also with registers, which pass through the same modules."""
    name, model = case
    seen = {}

    class Watcher:
        def on_residual(self, block, hidden):
            seen[block] = hidden.clone()

    ids = token_ids(tokens=8)
    accessed = access(model)
    with observing(accessed, [Watcher()]):
        run(accessed, full_batch(ids))
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    assert sorted(seen) == list(range(7))
    for layer in range(3):
        assert torch.allclose(seen[2 * layer], states[layer], atol=1e-4, rtol=1e-4), name


def test_load_finds_the_zoo_by_itself(tmp_path):
    import subprocess
    import sys

    decoder(spec_of("gate-conditional-head")).save_pretrained(tmp_path)
    code = f"from spikesink.access import load; print(load({str(tmp_path)!r}).provenance['architecture'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "SpikesinkDecoderForCausalLM", done.stderr[-500:]
    assert load(tmp_path).n_layers == 3
