"""Recipes: presets, overrides, errors that name the path, and what counts as another recipe."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_recipe import tiny_recipe

from spikesink.errors import InputError
from spikesink.records.study import StudyRecord
from spikesink.study.cell import evaluation_sha256
from spikesink.train.presets import PRESETS
from spikesink.train.recipe import Recipe, changed, load_recipe
from spikesink.train.streams import open_stream, source_sha256
from spikesink.zoo import ConditionalGate, DyT, GeLU

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_read_and_round_trip(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.read(yaml.safe_load(recipe.to_yaml())) == recipe


def test_the_paper_preset_is_table_9():
    recipe = load_recipe("paper")
    assert recipe.tokens == pytest.approx(100e9, rel=0.05)
    assert recipe.training.batch_size * recipe.data.seq_len == pytest.approx(2e6, rel=0.05)
    assert (recipe.optimiser.lr, recipe.optimiser.betas, recipe.optimiser.warmup_steps) == (3e-4, (0.9, 0.95), 2000)
    assert recipe.training.steps == 50_000


def test_overrides():
    recipe = tiny_recipe(
        "model.norm=dyt", "model.ffn=gelu", "model.ffn.d_ffn=7", "optimiser.lr=2e-3", "model.gate=conditional",
        "model.gate.per=single", "training.loss_max=5", "optimiser.betas=[0.8, 0.9]", "data.bos=false",
    )  # fmt: skip
    assert recipe.model.norm == DyT()
    assert recipe.model.ffn == GeLU(d_ffn=7)
    assert recipe.model.gate == ConditionalGate(per="single")
    assert (recipe.optimiser.lr, recipe.training.loss_max, recipe.data.bos) == (0.002, 5, False)
    assert recipe.optimiser.betas == (0.8, 0.9)
    assert tiny_recipe("model.norm.kind=layernorm").model.norm.kind == "layernorm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.step=3", "training has no 'step'; did you mean 'steps'"),
        ("optimizer.lr=3", "the recipe has no 'optimizer'; did you mean 'optimiser'"),
        ("training.steps", "expected PATH=VALUE"),
        ("training.steps=many", "^training.steps: .*valid integer.*'many'"),
        ("model.norm=rms", "^model.norm: unknown kind 'rms'; did you mean 'rmsnorm'"),
        ("model.norm.eps.x=3", "model.norm.eps has no 'x'; it has no options"),
        ("training.precision=fp8", "^training.precision: .*'fp32', 'bf16' or 'auto'"),
        ("data.seq_len=11", "data.seq_len is 11, model.max_positions 10"),
        ("training.loss_min=9", "no prediction counts"),
        ("training.loss_max=0", "^training.loss_max: .*greater than 0"),
        ("running.log_every=2", "save_every is 3, log_every 2; expected a multiple"),
        ("data.source.path=x", "data.source has no 'path'"),
        ("training.steps=[1", r"'\[1' is no YAML"),
    ],
)
def test_errors_name_the_path(change, message):
    with pytest.raises(InputError, match=message):
        tiny_recipe(change)


@pytest.mark.parametrize("path", ["model.norm.model.x", "model.norm.alpha_init.x.y"])
def test_options_of_a_kind_that_was_named_alone(path):
    """Found by fuzzing: only validation knows them, and there may be none at that depth."""
    with pytest.raises(InputError, match=r"model\.norm\..* has no 'x'; it has no options"):
        tiny_recipe("model.norm=dyt", f"{path}=1")


def test_an_empty_range_of_positions_is_refused():
    with pytest.raises(InputError, match=r"training.loss_max is 3, below training.loss_min 4"):
        tiny_recipe("training.loss_min=4", "training.loss_max=3")


def test_unknown_recipes_and_broken_files(tmp_path):
    with pytest.raises(InputError, match="did you mean 'nano'"):
        load_recipe("nan0")
    (tmp_path / "broken.yaml").write_text("model: [")
    with pytest.raises(InputError, match="is no YAML"):
        load_recipe(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 3")
    with pytest.raises(InputError, match="A recipe is a mapping of name, pretrained, model"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "odd.yaml").write_text("model: {norm: {kind: dyt, eps: 1.0}}")
    with pytest.raises(InputError, match=r"^model\.norm\.eps: no such option"):
        load_recipe(tmp_path / "odd.yaml")


def test_what_makes_another_recipe():
    base = tiny_recipe()
    same = tiny_recipe("running.log_every=3", "monitor.every=4", "training.micro_batch=2", "name=other")
    other = tiny_recipe("optimiser.lr=0.02", "model.norm=dyt")
    assert base.sha256() == same.sha256() != other.sha256()
    assert changed(base.essence(), same.essence()) == []
    lines = changed(base.essence(), other.essence())
    assert lines == [
        "model.norm: rmsnorm (eps=1e-05) -> dyt (alpha_init=0.5)",
        "optimiser.lr: 0.01 -> 0.02",
    ]


def test_every_option_of_a_kind_named_by_an_override():
    """The second option, too, although the first is set by then."""
    recipe = tiny_recipe("data.source.kind=text", "data.source.path=a.txt", "data.source.tokenizer=someone/model")
    assert (recipe.data.source.path, recipe.data.source.tokenizer) == ("a.txt", "someone/model")
    with pytest.raises(InputError, match="toknizer"):
        tiny_recipe("data.source.kind=text", "data.source.path=a.txt", "data.source.toknizer=x")


@pytest.mark.parametrize("text", ["one\ntwo\nthree\n", "word " * 3000], ids=["3 documents", "one long line"])
def test_a_text_that_leaves_nothing_to_hold_out(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text(text)
    recipe = tiny_recipe("model.vocab_size=300", "data.source.kind=text", f"data.source.path={tmp_path / 'a.txt'}")
    with pytest.raises(InputError, match=r"'a\.txt' has \d documents.* \d held out.*A document is a line"):
        open_stream(recipe, lambda stage, done, total: None)


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_what_the_processor_multiplies_in(monkeypatch, fast, expected):
    monkeypatch.setattr("spikesink.train.recipe._multiplies_bf16", lambda: fast)
    auto = load_recipe("nano", ["training.precision=auto"])
    same = load_recipe("nano", [f"training.precision={expected}"])
    other = load_recipe("nano", [f"training.precision={'fp32' if fast else 'bf16'}"])
    assert auto.precision == expected
    assert auto.sha256() == same.sha256() != other.sha256()


CELLS: dict[str, list[Path]] = {}
for cell in sorted(RESULTS.glob("*/*.json")):
    if (RESULTS / f"{cell.parent.name}.json").exists():
        CELLS.setdefault(cell.parent.name, []).append(cell)


@pytest.mark.parametrize("study", CELLS)
def test_new_options_leave_old_runs_as_they_were(study):
    """Every cell that lies in results/ is still known, so that its study goes on from it."""
    for path in CELLS[study]:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = [Recipe.read(record["recipe"], [f"training.precision={kind}"]).sha256() for kind in ("bf16", "fp32")]
        assert record["recipe_sha256"] in known, path.name


@pytest.mark.parametrize("study", CELLS)
def test_new_options_leave_the_held_out_text_as_it_was(study):
    """So that a study finds the baseline that another one trained; those by the first rules are older than that."""
    record = StudyRecord.read_file(RESULTS / f"{study}.json")
    evaluated = evaluation_sha256(Recipe.read(record.provenance.settings["recipe"]))
    for path in CELLS[study] if record.rules_version > 1 else []:
        assert json.loads(path.read_text())["provenance"]["tokens"]["evaluation_sha256"] == evaluated, path.name


def test_an_option_that_came_later_counts_where_it_is_used():
    for text in ([], ["data.source=python_source"]):
        once, again = load_recipe("nano", text), load_recipe("nano", [*text, "data.source.restarts=1"])
        assert again.sha256() != once.sha256()
        assert evaluation_sha256(again) != evaluation_sha256(once)


def test_text_that_begins_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("".join(f"Sentence {number} of a text.\n" for number in range(400)))
    text = ("data.source.kind=text", f"data.source.path={tmp_path / 'a.txt'}", "data.source.restarts=2")
    changes = ("model.vocab_size=300", *text)
    stream = open_stream(tiny_recipe(*changes), lambda stage, done, total: None)
    bos = stream.tokenizer.bos_token_id
    for ids in (stream.held_out, np.stack([stream.sample(index) for index in range(5)])):
        assert np.all((ids[:, 2:] == bos).sum(1) >= 2) and np.all(ids[:, 0] == bos)
    for refused in ("data.bos=false", "data.source.restarts=1000"):
        with pytest.raises(InputError, match=r"data\.source\.restarts is .* expected at most"):
            open_stream(tiny_recipe(*changes, refused), lambda stage, done, total: None)


def test_the_text_of_a_recipe_is_known_by_its_bytes(tmp_path):
    """A path keeps its name when its text changes; ids, and what a bigram chain is counted on, too."""
    text, ids = tmp_path / "text.txt", tmp_path / "ids.npy"
    text.write_text("one two\nthree frogs jump\n")
    np.save(ids, np.arange(12).reshape(3, 4))
    of_text = tiny_recipe("data.source.kind=text", f"data.source.path={text}")
    of_ids = tiny_recipe("data.source.kind=ids", f"data.source.path={ids}")
    of_chain = tiny_recipe(f"data.source.text={text}")
    assert source_sha256(of_text) == hashlib.sha256(b"one two\nthree frogs jump\n").hexdigest()
    assert source_sha256(of_ids) == hashlib.sha256(ids.read_bytes()).hexdigest()
    before = source_sha256(of_chain)
    assert before not in (None, source_sha256(tiny_recipe()))
    text.write_text("one two\nfour frogs jumped\n")
    assert source_sha256(of_text) == hashlib.sha256(b"one two\nfour frogs jumped\n").hexdigest()
    assert source_sha256(of_chain) != before
    of_hub = "{kind: hub, name: some/text, tokenizer: some/model, tokens: 9}"
    assert source_sha256(tiny_recipe(f"data.source={of_hub}")) is None
