"""Grids: every built-in variant is what it says, changes and scales are exact, errors name the path."""

import re

import pytest
import yaml
from study_cases import GRID, base

from spikesink.errors import InputError
from spikesink.study.grid import (
    STUDIES,
    Grid,
    Variant,
    cells,
    impossible,
    load_grid,
    variant_changes,
    variant_recipe,
)
from spikesink.train.presets import PRESETS
from spikesink.train.recipe import load_recipe
from spikesink.zoo import diff


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_built_in_grids(name, preset):
    _, grid = load_grid(name)
    recipe = load_recipe(preset)
    left_out = impossible(grid, recipe)
    too_small: dict[str, set[str]] = {"nano": {"n_heads_x0.25"}, "sinks": {"n_heads_x0.25", "from_1_to_x0.0625"}}
    assert set(left_out) <= too_small.get(preset, set())
    seen = {}
    for variant, choice in grid.variants.items():
        if variant in left_out:
            continue
        changes = variant_changes(recipe, choice)
        declared = {path.split(".kind")[0] for path in (*choice.set, *choice.scale)}
        changed = {line.split(":")[0] for line in changes}
        assert all(any(path.startswith(one) or one.startswith(path) for one in declared) for path in changed)
        assert bool(changes) == (variant != grid.baseline)
        assert tuple(changes) not in seen, f"{variant} is {seen[tuple(changes)]}"
        seen[tuple(changes)] = variant


def test_a_variant_of_the_model_is_one_replacement():
    recipe = load_recipe("nano")
    _, grid = load_grid("normalisation")
    changes = {
        name: set(diff(recipe.model, variant_recipe(recipe, choice).model)) for name, choice in grid.variants.items()
    }
    assert changes == {
        "pre_norm": set(), "sandwich": {"arrangement"}, "sandwich_qk": {"arrangement"}, "dynamic_tanh": {"norm"},
        "dynamic_tanh_lr_x0.25": {"norm"},
        "post_norm": {"arrangement"}, "no_input_norm": {"arrangement"}, "no_bos_loss": set(), "late_bos": set(),
    }  # fmt: skip


def test_the_paper_is_reproduced_at_its_own_size():
    """Scaled from the paper's preset, variants are table 8's and table 6's own numbers."""
    recipe = load_recipe("paper")
    context = load_grid("context")[1].variants["from_x0.25_to_x1.25"]
    long = variant_recipe(recipe, context)
    assert (long.training.loss_min, long.data.seq_len, long.model.max_positions) == (1024, 5120, 5120)
    heads = load_grid("heads")[1].variants["d_head_x0.0625_n_heads_x16"]
    many = variant_recipe(recipe, heads).model
    assert (many.d_head, many.n_heads, many.n_kv_heads) == (8, 512, 512)


def test_fresh_seeds_are_further_on():
    _, grid = load_grid("normalisation")
    base = load_recipe("nano")
    fresh = cells("normalisation", grid, base, 2, ["sandwich"], first_seed=8)
    assert [cell.name for cell in fresh] == ["pre_norm-8", "sandwich-8", "pre_norm-9", "sandwich-9"]
    assert fresh[2].recipe == cells("normalisation", grid, base, 10, ["sandwich"])[18].recipe


def test_seeds_are_those_of_weights_and_data():
    recipe = variant_recipe(base(), GRID.variants["wide"], seed=7, name="x")
    assert (recipe.training.seed, recipe.data.seed, recipe.name) == (7, 7, "x")
    assert recipe.model.ffn.d_ffn == 40


def test_all_variants_of_a_seed_come_first():
    assert [cell.name for cell in cells("s", GRID, base(), 2)] == [
        "plain-0", "wide-0", "dyt-0", "plain-1", "wide-1", "dyt-1",
    ]  # fmt: skip
    assert [cell.variant for cell in cells("s", GRID, base(), 1, ["dyt"])] == ["plain", "dyt"]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"set": {"model.nrom": "dyt"}}, "model has no 'nrom'"),
        ({"set": {"model.norm": "rms-norm"}}, "did you mean 'rmsnorm'"),
        ({"scale": {"model.n_heads": 0.3}}, "2 x 0.3 is no whole number"),
        ({"scale": {"model.norm": 2}}, "expected a number there"),
        ({"scale": {"training.loss_min": {"of": "data.seqlen", "by": 0.5}}}, "data has no 'seqlen'.*'seq_len'"),
        ({"scale": {"model.ffn.d_fn": 2}}, "model.ffn has no 'd_fn'; did you mean 'd_ffn'"),
        ({"set": {"model.norm": {"kind": "dyt", "epss": 1}}}, "model.norm.epss: no such option"),
    ],
)
def test_bad_variants(variant, message):
    with pytest.raises(InputError, match=message):
        variant_recipe(base(), Variant.parse({"summary": "bad", **variant}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": {"model.fnn": "relu2"}}, "variants.bad: model.fnn: model has no 'fnn'; did you mean 'ffn'"),
        (
            {"scale": {"model.ffn.d_fn": 2}},
            "variants.bad: model.ffn.d_fn: model.ffn has no 'd_fn'; did you mean 'd_ffn'",
        ),
    ],
)
def test_a_typo_is_no_variant_that_is_left_out(change, message):
    variants = {"plain": {"summary": "as it is"}, "bad": {"summary": "a typo", **change}}
    with pytest.raises(InputError, match=re.escape(message)):
        Grid.parse({"about": "a", "baseline": "plain", "variants": variants})


def test_an_option_of_another_kind_is_left_out():
    """The path exists, the preset's data lack it."""
    variants = {"plain": {"summary": "as it is"}, "more": {"summary": "x", "scale": {"data.source.tokens": 2}}}
    grid = Grid.parse({"about": "a", "baseline": "plain", "variants": variants})
    assert set(impossible(grid, base())) == {"more"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"about": "a", "baseline": "b", "variants": {"c": {"summary": "x"}}}, "baseline is 'b'"),
        ({"about": "a", "baseline": "../b", "variants": {"../b": {"summary": "x"}}}, r"\.\./b"),
        ({"about": "a", "baseline": "b", "variants": {"b": {"summary": "x", "sett": {}}}}, "variants.b.sett"),
        (["list"], "holds a list"),
    ],
)
def test_bad_grid_files(content, message, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        load_grid(str(path))


def test_a_users_grid(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GRID.model_dump(mode="json")))
    assert load_grid(str(path)) == ("mine", GRID)


def test_unknown_names():
    with pytest.raises(InputError, match="did you mean 'gating'"):
        load_grid("gatng")
    with pytest.raises(InputError, match="did you mean 'dyt'"):
        cells("s", GRID, base(), 1, ["dty"])


def test_grid_needs_its_baseline():
    with pytest.raises(InputError):
        Grid.parse({"about": "a", "baseline": "b", "variants": {}})
