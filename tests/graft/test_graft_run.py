"""A whole graft of a tiny model: record, resumption, export, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from test_graft_families import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from spikesink.analyse.scan import scan
from spikesink.data.corpus import read_corpus
from spikesink.data.tokenizers import train_bpe
from spikesink.errors import InputError, NumericError, OutputError
from spikesink.graft import GraftSettings, graft_and_heal, graft_recipes
from spikesink.records.training import GraftRecord
from spikesink.train.streams import open_stream
from spikesink.zoo import SpikesinkDecoderForCausalLM

FAST = ("training.batch_size=3", "running.threads=1", "running.save_every=4", "monitor.sequences=2")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    choice = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "off", "home", "again"]
    words = np.random.default_rng(0).choice(choice, (400, 12))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(row) + "." for row in words), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny("llama", vocab_size=300).save_pretrained(folder / "model")
    tokenizer = train_bpe(read_corpus(text), 300, tmp_path_factory.mktemp("bpe") / "bpe")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def settings(checkpoint, text, *changes, **options):
    options = {"steps": 12, "seq_len": 16, "sequences": 5, **options}
    return GraftSettings(str(checkpoint), (*changes, *FAST), text=text, **options)


@pytest.fixture(scope="module")
def sandwich(checkpoint, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("graft")
    return out, graft_and_heal(settings(checkpoint, text, "arrangement=sandwich"), out)


def test_record(sandwich):
    out, record = sandwich
    assert GraftRecord.read(out).points == record.points
    assert set(record.points) == {"original", "grafted", "healed", "control"}
    assert not record.failed
    # What `auto` came to.
    assert record.provenance.settings["precision"] in ("bf16", "fp32")
    # Two norms of 24 in each of 4 layers.
    assert record.new_parameters == 4 * 2 * 24
    pair = [np.array(record.points[name].losses_nats) for name in ("healed", "control")]
    assert abs(record.cost_nats.value - (pair[0] - pair[1]).mean()) <= 1e-9
    assert record.points["healed"].perplexity.value < record.points["grafted"].perplexity.value
    assert record.move.kl_nats > 0
    assert {"healed.eval_loss", "control.eval_loss", "healed.spikesink/sink_ratio"} <= set(record.arrays)


def test_export_is_plain_and_scans_alike(sandwich):
    out, record = sandwich
    assert record.exported_as == "gemma2"
    assert json.loads((out / "model" / "config.json").read_text())["model_type"] == "gemma2"
    plain = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    ours = SpikesinkDecoderForCausalLM.from_pretrained(out / "healed" / "model").eval()
    ids = torch.from_numpy(np.load(out / "healed" / "held_out.npy"))
    with torch.no_grad():
        difference = (plain(input_ids=ids).logits - ours(input_ids=ids).logits).abs().max()
    assert float(difference) <= 1e-4
    one, other = scan(plain, ids), scan(ours, ids)
    assert one.summary.perplexity == pytest.approx(other.summary.perplexity, rel=1e-4)
    assert one.summary.sink_ratio == pytest.approx(other.summary.sink_ratio, abs=1e-6)


def test_control_of_another_graft_and_resumption(sandwich, checkpoint, text, tmp_path, monkeypatch):
    """A graft that was stopped in its training ends as one that was not; the shared control is not trained again."""
    from spikesink.graft import run

    whole = graft_and_heal(settings(checkpoint, text, "gate=conditional"), tmp_path / "whole", control_from=sandwich[0])
    stages = []

    def stop(stage, done, total):
        stages.append(stage)
        if stage == "train" and done == 7:
            raise KeyboardInterrupt

    asked = settings(checkpoint, text, "gate=conditional")
    with pytest.raises(KeyboardInterrupt):
        graft_and_heal(asked, tmp_path / "stopped", control_from=sandwich[0], progress=stop)
    with pytest.raises(OutputError, match="--resume"):
        graft_and_heal(asked, tmp_path / "stopped", control_from=sandwich[0])
    monkeypatch.setattr(run, "moved", None)
    resumed = graft_and_heal(asked, tmp_path / "stopped", control_from=sandwich[0], resume=True)
    assert resumed.points == whole.points
    assert not (tmp_path / "whole" / "control").exists()
    assert whole.points["control"] == sandwich[1].points["control"]
    assert whole.move.kl_nats <= 1e-6
    assert whole.exported_as is None


def test_without_healing_and_then_with_it(checkpoint, text, tmp_path):
    """What was measured before a healing is not measured again for it, and never taken without being asked for."""
    asked, out = settings(checkpoint, text, "normaliser=off_by_one", steps=0), tmp_path / "out"
    record = graft_and_heal(asked, out)
    assert (set(record.points), record.steps, record.tokens) == ({"original", "grafted"}, 0, 0)
    assert (out / "model" / "config.json").exists()
    with pytest.raises(OutputError, match="already holds a graft; pass --resume"):
        graft_and_heal(asked, out)
    (out / "graft.json").unlink()
    healing, stages = settings(checkpoint, text, "normaliser=off_by_one"), set()
    with pytest.raises(OutputError, match="already holds a graft; pass --resume"):
        graft_and_heal(healing, out)
    healed = graft_and_heal(healing, out, resume=True, control=False, progress=lambda stage, *_: stages.add(stage))
    assert {name: healed.points[name] for name in record.points} == record.points
    assert "measure healed" in stages and not {"measure original", "measure grafted"} & stages


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (("gate=conditional",), {}, r"grafted' was made of something else \(.*replacement.gate: none -> conditional"),
        (("arrangement=sandwich", "training.seed=1"), {}, r"grafted' was made of something else \(seed: 0 -> 1\)"),
        (("arrangement=sandwich", "data.seed=1"), {}, r"grafted' was .*\(first_samples.ids_sha256: "),
        (("arrangement=sandwich",), {"sequences": 4}, r"original' was .* held_out.sequences: 5 -> 4\)"),
        (("arrangement=sandwich",), {"steps": 13}, r"healed' was .*\(recipe.training.steps: 12 -> 13\)"),
    ],
)
def test_a_part_of_another_graft_is_refused(sandwich, checkpoint, text, changes, options, message):
    out = sandwich[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(InputError, match=f"{message}.*use another --out"):
        graft_and_heal(settings(checkpoint, text, *changes, **options), out, resume=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(("what", "message"), [("text", r"\(.*text: "), ("weights", r"\(model.file_sha256.model\.")])
def test_an_original_of_another_text_or_model_behind_the_same_path_is_refused(
    checkpoint, text, tmp_path, what, message
):
    shutil.copytree(checkpoint, tmp_path / "model")
    shutil.copy(text, tmp_path / "text.txt")
    asked = settings(tmp_path / "model", tmp_path / "text.txt", "gate=conditional", steps=0)
    graft_and_heal(asked, tmp_path / "first")
    graft_and_heal(asked, tmp_path / "second", control_from=tmp_path / "first")
    assert not (tmp_path / "second" / "original").exists()
    if what == "text":
        (tmp_path / "text.txt").write_text(text.read_text().replace("cat", "mat"), encoding="utf-8")
    else:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        torch.nn.init.constant_(model.model.norm.weight, 2.0)
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=rf"first/original' was made of .*{message}.*use another --control-from"):
        graft_and_heal(asked, tmp_path / "third", control_from=tmp_path / "first")
    assert not (tmp_path / "third").exists()


def test_a_training_on_a_text_that_changed_since_it_was_opened_is_refused(checkpoint, text, tmp_path):
    path, out = tmp_path / "text.txt", tmp_path / "out"
    shutil.copy(text, path)
    asked = settings(checkpoint, path, "gate=conditional")

    def change(stage, *_):
        if stage == "measure grafted":
            path.write_text(text.read_text().replace("cat", "mat"), encoding="utf-8")

    with pytest.raises(InputError, match=r"healed' was trained on a text of SHA-256 .*use another --out"):
        graft_and_heal(asked, out, progress=change)
    # As little may it be taken up where the first text is back.
    shutil.copy(text, path)
    with pytest.raises(InputError, match=r"healed' was trained on a text of SHA-256 .*use another --out"):
        graft_and_heal(asked, out, resume=True)


def test_parts_of_an_earlier_version_are_refused(checkpoint, text, tmp_path):
    (tmp_path / "old" / "original").mkdir(parents=True)
    (tmp_path / "old" / "original" / "point.json").write_text("{}")
    asked = settings(checkpoint, text, "gate=conditional")
    for options in (
        {"out": tmp_path / "old", "resume": True},
        {"out": tmp_path / "new", "control_from": tmp_path / "old"},
    ):
        with pytest.raises(InputError, match=r"original' does not say what it was made of, .* an earlier version"):
            graft_and_heal(asked, **options)
    assert not (tmp_path / "new").exists()


def test_a_graft_whose_function_is_not_finite_is_a_result(checkpoint, text, tmp_path):
    """One token is a spike that only its norms hold: without them it grows from block to block until it overflows."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "model")
    common = AutoTokenizer.from_pretrained(checkpoint)(" the", add_special_tokens=False).input_ids[-1]
    with torch.no_grad():
        model.model.embed_tokens.weight[common] *= 1e19
    model.save_pretrained(tmp_path / "model")
    changed = settings(tmp_path / "model", text, "arrangement=no_input", steps=3)
    record = graft_and_heal(changed, tmp_path / "out", control=False)
    assert record.move is None and set(record.points) == {"original"}
    assert set(record.failed) == {"grafted", "healed"}
    assert all("values that are not numbers" in reason for reason in record.failed.values())
    assert GraftRecord.read(tmp_path / "out").failed == record.failed
    assert not (tmp_path / "out" / "model").exists()


def test_a_training_that_diverges_is_a_result(checkpoint, text, tmp_path, monkeypatch):
    from spikesink.graft import run

    def diverge(*_, **__):
        raise NumericError("The loss is nan at step 3.")

    monkeypatch.setattr(run, "train", diverge)
    record = graft_and_heal(settings(checkpoint, text, "arrangement=no_input"), tmp_path / "out", control=False)
    assert record.failed == {"healed": "The loss is nan at step 3."}
    assert set(record.points) == {"original", "grafted"}
    assert record.cost_nats is None


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (("arrangement=pre",), {}, "nothing to graft"),
        (("arrangement=sandwhich",), {}, "did you mean 'sandwich'"),
        (("n_layers=2",), {}, "cannot replace n_layers"),
        (("arrangement=sandwich",), {"steps": 1}, "evaluated on"),
        (("arrangement=sandwich",), {"text": None}, "text of its own"),
    ],
)
def test_refusals(checkpoint, text, tmp_path, changes, options, message):
    asked = GraftSettings(
        str(checkpoint), (*changes, *FAST), **{"text": text, "steps": 12, "seq_len": 16, "sequences": 5, **options}
    )
    with pytest.raises(InputError, match=message):
        graft_and_heal(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_that_does_not_fit_is_refused_first(checkpoint, text, tmp_path, monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(InputError, match="weights, gradients and optimiser"):
        graft_and_heal(settings(checkpoint, text, "arrangement=sandwich"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_token_ids_instead_of_a_text(checkpoint, tmp_path):
    """The last sequences are held out, the others trained on, each as it is."""
    ids = np.random.default_rng(1).integers(0, 300, (9, 16))
    np.save(tmp_path / "ids.npy", ids)
    healing, _, _ = graft_recipes(settings(checkpoint, None, "gate=conditional", tokens=tmp_path / "ids.npy"))
    stream = open_stream(healing, lambda *_: None)
    assert (stream.held_out == ids[4:]).all() and stream.provenance["tokens"] == 4 * 16
    assert {tuple(stream.sample(index)) for index in range(4)} == {tuple(row) for row in ids[:4]}
    longer = settings(checkpoint, None, "gate=conditional", tokens=tmp_path / "ids.npy", seq_len=17)
    with pytest.raises(InputError, match=r"data.seq_len=16"):
        open_stream(graft_recipes(longer)[0], lambda *_: None)


def test_a_field_and_the_chat_template(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = "{% for one in messages %}cat{{ one.content }}mat{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [json.dumps({"body": f" sat {index}"}) for index in range(300)]
    (tmp_path / "text.jsonl").write_text("\n".join(rows), encoding="utf-8")
    asked = settings(tmp_path / "model", tmp_path / "text.jsonl", "gate=conditional", field="body", chat_template=True)
    stream = open_stream(graft_recipes(asked)[0], lambda *_: None)
    assert re.search(r"cat sat \d+mat", tokenizer.decode(stream.held_out[0]))


def test_recipes_differ_in_the_model_alone(checkpoint, text):
    healing, control, changed = graft_recipes(settings(checkpoint, text, "norm=dyt", "optimiser.lr=1e-3"))
    assert changed.keys() == {"norm"}
    assert healing.optimiser.lr == control.optimiser.lr == 1e-3
    assert healing.model_copy(update={"model": control.model}) == control


def test_model_from_in_a_recipe(checkpoint):
    from spikesink.train.recipe import Recipe

    recipe = Recipe.read({"model": {"from": str(checkpoint), "gate": "conditional"}, "data": {"seq_len": 16}})
    assert (recipe.pretrained, recipe.model.gate.kind, recipe.model.d_model) == (str(checkpoint), "conditional", 24)
    assert Recipe.read(recipe.model_dump(mode="json")) == recipe
    over = Recipe.read({"data": {"seq_len": 16}}, [f"model.from={checkpoint}", "model.norm=dyt"])
    assert (over.model.norm.kind, over.model.d_model) == ("dyt", 24)
    with pytest.raises(InputError, match="cannot replace d_model"):
        Recipe.read({"model": {"from": str(checkpoint), "d_model": 48}, "data": {"seq_len": 16}})
