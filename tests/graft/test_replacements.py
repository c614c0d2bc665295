"""Replacements in a trained decoder: how far its function moves before healing, and what the gradient reaches."""

import pytest
import torch
from test_graft_families import SIZES, tiny

from spikesink.errors import InputError
from spikesink.train.recipe import Recipe
from spikesink.zoo import build, from_hf
from spikesink.zoo.graft import graft

MOVES = {
    "arrangement=sandwich": (0.01, 0.9),
    "arrangement=sandwich_qk": (0.02, 1.2),
    "arrangement=post": (0.02, 1.2),
    "arrangement=no_input": (0.02, 4.0),
    "arrangement=pre_qk": (0.01, 0.9),
    "norm=dyt": (0.001, 2.0),
    "norm=layernorm": (0.001, 0.9),
    "gate=conditional": (0.0, 1e-6),
    "gate={kind: positional, bias: true}": (0.0, 1e-6),
    "gate=unconditional": (0.0, 1e-6),
    "normaliser=off_by_one": (0.001, 0.9),
    "normaliser=learned_sink": (1e-4, 0.05),
}
"""Bounds on the share of the logits' variance over tokens that a replacement costs before any healing."""


def share_moved(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after.detach() - before).square().mean() / before.var(dim=(0, 1)).mean())


def grafted(change: str, model_type: str = "llama"):
    decoder = from_hf(tiny(model_type))
    spec = decoder.config.decoder_spec.model_dump(mode="json")
    target = Recipe.read({"model": spec, "data": {"seq_len": 9}}, [f"model.{change}"]).model
    ids = torch.randint(0, SIZES["vocab_size"], (4, 29), generator=torch.Generator().manual_seed(7))
    return decoder, graft(decoder, target, ids)


@pytest.mark.parametrize("change", MOVES)
def test_function_moves_little_and_gradients_reach_what_is_new(change):
    decoder, new = grafted(change)
    ids = torch.randint(0, SIZES["vocab_size"], (3, 23), generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        before = decoder(input_ids=ids).logits
    logits = new(input_ids=ids).logits
    moved = share_moved(before, logits)
    low, high = MOVES[change]
    assert low <= moved <= high
    fresh = build(new.config.decoder_spec).eval()
    shapes = {name: parameter.shape for name, parameter in fresh.state_dict().items()}
    same = {name: value for name, value in decoder.state_dict().items() if shapes.get(name) == value.shape}
    fresh.load_state_dict(same, strict=False)
    if moved < 0.9 and change != "normaliser=off_by_one":
        assert moved < share_moved(before, fresh(input_ids=ids).logits), "no better than new parts as they are built"
    new(input_ids=ids, labels=ids).loss.backward()
    missing = [name for name, parameter in new.named_parameters() if not parameter.grad.abs().max() > 0]
    assert not missing
    old = dict(decoder.named_parameters())
    assert all(torch.isfinite(parameter).all() for parameter in new.parameters())
    assert set(dict(new.named_parameters())) != set(old) or change in ("normaliser=off_by_one", "arrangement=no_input")


def test_a_scale_left_in_the_matrices_is_the_norms_own_where_all_tokens_are_as_long():
    decoder, new = grafted("arrangement=no_input")
    hidden = torch.randn(5, 24)
    hidden = hidden / hidden.norm(dim=-1, keepdim=True)
    weight = decoder.model.layers[0].input_layernorm.weight.detach()
    was = decoder.model.layers[0].self_attn.q_proj.weight.detach()
    now = new.model.layers[0].self_attn.q_proj.weight.detach()
    ratio = now / was
    # One number a channel: the norm's weight over the typical size of the embeddings.
    assert float((ratio - ratio[:1]).abs().max()) <= 1e-5
    per_weight = ratio[0] / weight
    assert 0.8 <= float(per_weight.max() / per_weight.min()) <= 3.0


@pytest.mark.parametrize(("change", "in_order"), [("norm=dyt", True), ("arrangement=sandwich", False)])
def test_a_norm_is_fitted_to_what_enters_it_where_nothing_bounds_the_writes(change, in_order):
    decoder, new = grafted(change)
    ids = torch.randint(0, SIZES["vocab_size"], (4, 29), generator=torch.Generator().manual_seed(7))
    name = "ffn_layernorm" if in_order else "post_ffn_norm"
    entered, left = {}, {}
    for which, model in (("old", decoder), ("new", new)):
        norm = getattr(model.model.layers[1], name)

        def note(_, inputs, output, which=which):
            entered[which], left[which] = inputs[0].flatten(0, 1).double(), output.flatten(0, 1).double()

        handle = norm.register_forward_hook(note)
        with torch.no_grad():
            model(input_ids=ids)
        handle.remove()
    # The residuals of a least-squares fit are orthogonal to its features, in the decoder that it was fitted in only.
    norm = getattr(new.model.layers[1], name).double().requires_grad_(False)
    products = {}
    for which in ("old", "new"):
        given = norm(entered[which])
        feature = given - (norm.bias if in_order else 0.0)
        products[which] = float(
            ((given - left["old"]) * feature).sum(0).abs().max() / left["old"].square().sum(0).max()
        )
    assert products["new" if in_order else "old"] <= 1e-5 < 1e-3 <= products["old" if in_order else "new"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("arrangement=pre", "nothing to graft"),
        ("d_model=48", "cannot replace d_model"),
        ("norm=none", "ties to its embeddings"),
    ],
)
def test_what_cannot_be_grafted_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        grafted(change)
