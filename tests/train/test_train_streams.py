"""What a recipe trains on: the same whatever lies in the cache, and the entropy of what its held-out loss counts."""

import json
import math

import pytest
from tiny_recipe import tiny_recipe
from tokenizers.normalizers import Lowercase
from transformers import AutoTokenizer

from spikesink.data.corpus import read_corpus
from spikesink.data.tokenizers import train_bpe
from spikesink.train.streams import Samples, open_stream

SAYS = "{% for one in messages %}NAME says {{ one.content }}{% endfor %}"


def quiet(stage, done, total):
    pass


@pytest.fixture
def rows(tmp_path):
    """Two texts of 300 documents in one file."""
    lines = [json.dumps({"text": f"Two frogs jump {index}", "chat": f"no toad, {index}"}) for index in range(300)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"kind": "text", "path": str(tmp_path / "rows.jsonl")}


@pytest.fixture
def pair_of(rows, tmp_path):
    """By what they differ in, two sources that do not give the same ids."""

    def fast(name, **options):
        tokenizer = train_bpe(read_corpus(rows["path"]), 300, tmp_path / "bpe")
        tokenizer.chat_template = SAYS
        for option, value in options.items():
            setattr(tokenizer if hasattr(tokenizer, option) else tokenizer.backend_tokenizer, option, value)
        tokenizer.save_pretrained(tmp_path / name)
        return {**rows, "tokenizer": str(tmp_path / name)}

    def slow(name, merges):
        letters = sorted(set(" ".join(map(str, range(10))) + "Twofrgsjump"))
        tokens = ["<unk>", "Tw@@", *letters, *(f"{letter}@@" for letter in letters)]
        (tmp_path / name).mkdir()
        vocabulary = {token: index for index, token in enumerate(tokens)}
        (tmp_path / name / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / name / "merges.txt").write_text(f"#version\n{merges}\n")
        (tmp_path / name / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
        assert not AutoTokenizer.from_pretrained(tmp_path / name).is_fast
        return {**rows, "tokenizer": str(tmp_path / name)}

    return {
        "eos": lambda: (fast("one"), fast("other", eos_token="<bos>")),
        "template": lambda: (
            {**fast("one"), "chat_template": True},
            {**fast("other", chat_template=SAYS.replace("says", "asks")), "chat_template": True},
        ),
        "field": lambda: ({**fast("one"), "field": "chat"}, {**fast("one"), "chat_template": True}),
        "normaliser": lambda: (fast("one"), fast("other", normalizer=Lowercase())),
        "merges": lambda: (slow("slow", "T w"), slow("slower", "")),
        "trained tokenizer": lambda: ({**rows, "field": "text"}, {**rows, "field": "chat"}),
    }


@pytest.mark.parametrize("what", ["eos", "template", "field", "normaliser", "merges", "trained tokenizer"])
def test_what_lies_in_the_cache_does_not_decide_the_ids(pair_of, tmp_path, monkeypatch, what):
    def held_out(source, cache):
        monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / cache))
        recipe = tiny_recipe("model.vocab_size=300", "data.bos=false", f"data.source={json.dumps(source)}")
        return open_stream(recipe, quiet).held_out.tolist()

    one, other = pair_of[what]()
    alone = held_out(other, "empty")
    assert held_out(one, "shared") != alone
    assert held_out(other, "shared") == alone


def test_a_token_file_is_made_once(pair_of, tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKESINK_CACHE", str(tmp_path / "cache"))
    for source in (*pair_of["template"](), *pair_of["merges"]()):
        for _ in range(2):
            open_stream(
                tiny_recipe("model.vocab_size=300", "data.bos=false", f"data.source={json.dumps(source)}"), quiet
            )
    assert len([path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]) == 4


@pytest.mark.parametrize(("first", "last"), [(1, None), (2, None), (3, 5), (1, 1), (8, 8), (4, 99)])
def test_the_entropy_is_that_of_the_predictions_that_count(tmp_path, first, last):
    """By hand for 'ababcbb' (tests/data/test_streams.py): token b is the trigger, then come a and c."""
    (tmp_path / "text.txt").write_text("ababcbb")
    limits = [f"training.loss_min={first}", f"training.loss_max={'null' if last is None else last}"]
    recipe = tiny_recipe(
        "model.vocab_size=4", "data.source.triggers=1", f"data.source.text={tmp_path / 'text.txt'}", *limits
    )
    stream = open_stream(recipe, quiet)
    behind_a = -(3 / 5 * math.log(3 / 5) + 2 / 5 * math.log(1 / 5))
    entropy = [math.log(2), 0.0, behind_a, 1.5 * math.log(2)]
    samples = Samples(stream.held_out.__getitem__, len(stream.held_out), first, last)
    counted = [
        entropy[sample["input_ids"][place - 1]]
        for sample in (samples[index] for index in range(len(samples)))
        for place in range(1, 9)
        if sample["labels"][place] != -100
    ]
    assert len(counted) == 6 * (min(last or 8, 8) - first + 1)
    assert stream.provenance["entropy_nats"] == pytest.approx(sum(counted) / len(counted), abs=1e-12)
