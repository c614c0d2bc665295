"""The spec: one replacement a variant, named by diff; errors that name the path; a plain-data round trip."""

import pytest
from zoo_grid import BASE, CHANGES, spec_of

from spikesink.errors import InputError
from spikesink.zoo import ConditionalGate, DecoderSpec, DyT, KeyValueBias, RMSNorm, RoPE, Sandwich, diff


@pytest.mark.parametrize("name", CHANGES)
def test_diff_names_exactly_the_declared_fields(name):
    changed = diff(BASE, spec_of(name))
    fields = {path.split(".")[0] for path in changed}
    assert fields == set(CHANGES[name])
    assert all(one != other for one, other in changed.values())


def test_diff_names_an_option_of_the_same_kind_by_itself():
    variant = BASE.model_copy(update={"norm": RMSNorm(eps=1e-3), "position": RoPE(theta=5.0)})
    assert diff(BASE, variant) == {"norm.eps": (1e-5, 1e-3), "position.theta": (10_000.0, 5.0)}
    other = BASE.model_copy(update={"norm": DyT()})
    assert diff(BASE, other) == {"norm": (RMSNorm(), DyT())}


@pytest.mark.parametrize("name", CHANGES)
def test_plain_data_round_trip(name):
    spec = spec_of(name)
    assert DecoderSpec.parse(spec.model_dump(mode="json")) == spec


def test_a_name_stands_for_its_kind():
    spec = DecoderSpec.parse(
        {"norm": "dyt", "arrangement": "sandwich", "gate": None, "virtual_keys": {"kind": "key_value_bias"}}
    )
    assert (spec.norm, spec.arrangement, spec.virtual_keys) == (DyT(), Sandwich(), KeyValueBias(n=1))
    assert DecoderSpec.parse({"gate": {"kind": "conditional", "per": "single"}}).gate == ConditionalGate(per="single")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"norm": {"kind": "dyt", "eps": 1e-6}}, "norm.eps: no such option (got 1e-06); remove it, or choose"),
        (
            {"norm": {"kind": "dyt", "alpha_int": 1}},
            "norm.alpha_int: no such option (got 1); did you mean 'alpha_init'?",
        ),
        ({"norm": "rms-norm"}, "norm: unknown kind 'rms-norm'; did you mean 'rmsnorm'?"),
        ({"norm": {"kind": "rmsnorm", "eps": -1}}, "norm.eps: Input should be greater than 0"),
        ({"gate": {"kind": "conditional", "per": "token"}}, "gate.per: Input should be 'channel', 'head' or 'single'"),
        ({"n_head": 3}, "n_head: no such option (got 3); did you mean 'n_heads'?"),
        ({"n_heads": 3, "n_kv_heads": 2}, "expected n_kv_heads to divide n_heads"),
        ({"d_head": 7}, "expected an even number"),
        ({"norm": {"eps": 1}}, "norm: expected a kind"),
    ],
)
def test_errors_name_the_path(content, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?").replace("(", r"\(").replace(")", r"\)")):
        DecoderSpec.parse(content)


def test_errors_carry_the_prefix_they_are_given():
    with pytest.raises(InputError, match=r"^model\.norm\.eps: "):
        DecoderSpec.parse({"norm": {"kind": "dyt", "eps": 1}}, "model")
