"""Simulated quantisation against rounding written out by hand, alone and inside a Llama written out by hand."""

import pytest
import torch
from hand_llama import Hand
from planted import close
from tiny import tiny

from spikesink.access import access
from spikesink.access.linears import find_linears
from spikesink.errors import InputError
from spikesink.intervene.quantise import (
    Rotation,
    Scheme,
    fake_quantise,
    kv_name,
    quantised_inputs,
    quantised_kv,
    quantised_weights,
    rotated_inputs,
)


def rounded(value: float, largest: float, bits: int) -> float:
    """value on the symmetric grid: round half to even, then cut."""
    top = 2 ** (bits - 1) - 1
    scale = largest / top
    return max(-top - 1, min(top, round(value / scale))) * scale


def by_hand(values, bits, granularity, spared=()):
    """(token, channel) rounded entry by entry; `spared` tokens are left alone and in no scale."""
    result = values.clone()
    tokens, channels = values.shape
    counted = [t for t in range(tokens) if t not in spared]
    whole = max((abs(float(values[u, d])) for u in counted for d in range(channels)), default=0.0)
    by_channel = [max((abs(float(values[u, c])) for u in counted), default=0.0) for c in range(channels)]
    for t in counted:
        token = max(abs(float(values[t, d])) for d in range(channels))
        for c in range(channels):
            largest = {"tensor": whole, "token": token, "channel": by_channel[c]}[granularity]
            result[t, c] = rounded(float(values[t, c]), largest, bits)
    return result


@pytest.mark.parametrize("granularity", ["tensor", "token", "channel"])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding(bits, granularity):
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(bits)) * 3
    ours = fake_quantise(values, bits, granularity)
    assert torch.allclose(ours, by_hand(values, bits, granularity), atol=1e-5)
    assert len(ours.unique()) > 3
    assert not torch.allclose(ours, values, atol=1e-4)


def test_static_scales_cut_what_is_beyond():
    values = torch.tensor([[1.0, -8.0, 0.26]])
    ours = fake_quantise(values, 8, "tensor", largest=torch.tensor(2.0))
    # In steps of 2 / 127: 63.5 goes to the even 64, -508 to the end at -128, 16.51 to 17.
    assert ours.tolist()[0] == pytest.approx([64 * 2 / 127, -128 * 2 / 127, 17 * 2 / 127], abs=1e-6)


def test_zeros_and_half_precision_survive():
    assert torch.equal(fake_quantise(torch.zeros(3, 2), 8, "token"), torch.zeros(3, 2))
    assert fake_quantise(torch.ones(3, 2, dtype=torch.bfloat16), 8, "tensor").dtype == torch.bfloat16
    with pytest.raises(InputError, match="2 to 16 bits"):
        fake_quantise(torch.ones(3, 2), 1, "tensor")
    with pytest.raises(InputError, match="tensor, token, channel"):
        fake_quantise(torch.ones(3, 2), 8, "row")


def sites_of(case, kind, block=None):
    return [s for s in find_linears(case.accessed) if s.kind == kind and block in (None, s.block)]


@pytest.mark.parametrize("granularity", ["tensor", "token", "channel"])
def test_inputs_of_one_block(case, granularity):
    def neurons(block, entering):
        if block != 4:
            return entering
        return by_hand(entering.flatten(0, 1), 4, granularity).view_as(entering)

    ours = case.logits(quantised_inputs(case.accessed, sites_of(case, "down_proj", 4), Scheme(4, granularity)))
    assert close(ours, Hand(case.model, neurons=neurons)(case.ids))
    assert not close(ours, case.plain)


def test_spared_tokens_are_left_alone_and_in_no_scale(case):
    spared = torch.zeros(3, 11, dtype=torch.bool)
    spared[0, 0] = spared[1, 7] = spared[2, 10] = True

    def neurons(block, entering):
        if block != 4:
            return entering
        chosen = set(spared.flatten().nonzero().flatten().tolist())
        return by_hand(entering.flatten(0, 1), 4, "tensor", chosen).view_as(entering)

    scheme = Scheme(4, "tensor", spared_tokens=spared)
    ours = case.logits(quantised_inputs(case.accessed, sites_of(case, "down_proj", 4), scheme))
    assert close(ours, Hand(case.model, neurons=neurons)(case.ids))
    assert not close(ours, case.logits(quantised_inputs(case.accessed, sites_of(case, "down_proj", 4), Scheme(4))))


def test_spared_channels(case):
    site = sites_of(case, "down_proj", 4)[0]

    def neurons(block, entering):
        if block != 4:
            return entering
        flat = entering.flatten(0, 1).clone()
        others = [c for c in range(40) if c not in (3, 19)]
        flat[:, others] = by_hand(flat[:, others], 4, "tensor")
        return flat.view_as(entering)

    scheme = Scheme(4, "tensor", spared_channels={site.name: torch.tensor([19, 3])})
    ours = case.logits(quantised_inputs(case.accessed, [site], scheme))
    assert close(ours, Hand(case.model, neurons=neurons)(case.ids))


def test_static_scales_by_site(case):
    site = sites_of(case, "down_proj", 4)[0]
    largest = torch.linspace(0.1, 1.0, 40)

    def neurons(block, entering):
        if block != 4:
            return entering
        done = entering.clone()
        for index in range(40):
            column = entering[..., index]
            scale = float(largest[index]) / 7
            done[..., index] = (column / scale).round().clamp(-8, 7) * scale
        return done

    scheme = Scheme(4, "channel", static={site.name: largest})
    ours = case.logits(quantised_inputs(case.accessed, [site], scheme))
    assert close(ours, Hand(case.model, neurons=neurons)(case.ids))


def test_keys_and_values(case):
    def cached(block, states):
        if block != 3:
            return states
        batch, tokens, heads, size = states.shape
        return by_hand(states.reshape(batch * tokens, heads * size), 4, "token").view_as(states)

    ours = case.logits(quantised_kv(case.accessed, Scheme(4, "token"), {3}))
    assert close(ours, Hand(case.model, keys=cached, values=cached)(case.ids))
    assert not close(ours, case.plain)
    assert kv_name(3, "key") == "block 3 key"


def test_weights_by_output_channel_and_back(case):
    def down(block, weight):
        return by_hand(weight, 4, "token") if block == 4 else weight

    before = case.model.state_dict()["model.layers.1.mlp.down_proj.weight"].clone()
    with quantised_weights(sites_of(case, "down_proj", 4), 4):
        ours = case.logits()
    assert close(ours, Hand(case.model, down=down)(case.ids))
    assert not close(ours, case.plain)
    after = case.model.state_dict()["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(before.view(torch.int32), after.view(torch.int32))


@pytest.mark.parametrize("width", [1, 24, 40, 64, 7])
def test_a_rotation_is_orthogonal(width):
    matrix = Rotation.of(width)(torch.eye(width))
    assert torch.allclose(matrix @ matrix.T, torch.eye(width), atol=1e-5)
    if width > 1:
        assert float(matrix.abs().max()) < 0.9


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt-post-norm"])
def test_the_rotated_model_is_the_model(family):
    from spikesink.access import full_batch, observing, run

    accessed = access(tiny(family))
    ids = torch.arange(22).view(2, 11)
    before = {name: tensor.clone() for name, tensor in accessed.model.state_dict().items()}
    sites = [site for site in find_linears(accessed) if site.kind == "down_proj"]
    assert len(sites) == 3
    with observing(accessed, []):
        plain = run(accessed, full_batch(ids))
        with rotated_inputs(accessed, sites, None):
            changed = any(not torch.equal(tensor, before[name]) for name, tensor in accessed.model.state_dict().items())
            rotated = run(accessed, full_batch(ids))
        with rotated_inputs(accessed, sites, Scheme(4)):
            rough = run(accessed, full_batch(ids))
    assert changed
    assert close(rotated, plain)
    assert not close(rough, plain)
    for name, tensor in accessed.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("llama", {"attention_in": 9, "attention_out": 3, "ffn_in": 6, "down_proj": 3}),
        ("gpt2", {"attention_in": 3, "attention_out": 3, "ffn_in": 3, "down_proj": 3}),
        ("opt-post-norm", {"attention_in": 9, "attention_out": 3, "ffn_in": 3, "down_proj": 3}),
        ("phi3", {"attention_in": 3, "attention_out": 3, "ffn_in": 3, "down_proj": 3}),
        ("mixtral", {"attention_in": 9, "attention_out": 3}),
    ],
)
def test_linears_are_found_in_every_family(family, counts):
    sites = find_linears(access(tiny(family)))
    kinds = {kind: sum(site.kind == kind for site in sites) for kind in {site.kind for site in sites}}
    assert kinds == counts
    for site in sites:
        assert (site.kind in ("attention_in", "attention_out")) == bool(site.block % 2)
    writers = {"llama": "down_proj", "gpt2": "c_proj", "opt-post-norm": "fc2", "phi3": "down_proj"}
    for site in sites:
        if site.kind == "down_proj":
            assert site.name.endswith(writers[family])
