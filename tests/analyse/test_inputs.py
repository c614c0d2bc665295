"""What `scan` takes besides ids and a bare model: wrapped models, masks of any kind, lists; the rest is refused."""

from collections import UserDict
from importlib import import_module

import numpy as np
import pytest
import torch
from tiny import tiny, token_ids

from spikesink import Anatomy, dissociate, find, scan
from spikesink.access import access
from spikesink.data import load_token_ids, read_corpus
from spikesink.errors import InputError, UnsupportedModelError
from spikesink.train.monitor import AnatomyMonitor

IDS = token_ids(3, 13)


def test_texts_are_whole_sequences_of_their_own(word_tokenizer):
    """By hand: BOS is not what this tokenizer puts first; shorter texts are padded on the right."""
    model = tiny("llama")
    record = scan(model, text=["w5 w6 w7 w8 w9", "w40 w41 w42"], tokenizer=word_tokenizer)
    ids, valid = [[5, 6, 7, 8, 9], [40, 41, 42, 0, 0]], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    by_ids = scan(model, ids, valid=valid)
    assert record.summary.perplexity == pytest.approx(by_ids.summary.perplexity)
    assert record.summary.spike == pytest.approx(by_ids.summary.spike)
    assert record.sinks.heads == by_ids.sinks.heads
    tokens = record.provenance.tokens
    assert (tokens["source"], tokens["sequences"], tokens["seq_len"], tokens["bos_added"]) == ("text", 2, 5, False)
    one = scan(access(model, word_tokenizer), text="w5 w6 w7 w8 w9")
    assert one.summary.perplexity == pytest.approx(scan(model, ids[:1]).summary.perplexity)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "w5 w6"}, "no tokenizer; expected one for text"),
        ({"text": "w5 w6", "tokens": [[1, 2]]}, "one source of text"),
        ({}, "neither token ids nor text="),
        ({"text": ["w5 w6", "w5"], "tokenizer": True}, "Text 1 has 1 token"),
        ({"text": [], "tokenizer": True}, "expected a string, or a list of strings"),
        ({"text": [["w5"]], "tokenizer": True}, "expected a string, or a list of strings"),
    ],
)
def test_text_that_cannot_be_taken(given, message, word_tokenizer):
    if given.get("tokenizer"):
        given = {**given, "tokenizer": word_tokenizer}
    with pytest.raises(InputError, match=message):
        scan(tiny("llama"), **given)


def numbers(record):
    return record.summary.perplexity, record.summary.spike


@pytest.fixture
def unverified(monkeypatch):
    """No model can be verified: what is refused is refused before."""

    def fails(_accessed):
        raise AssertionError("the model was verified first")

    monkeypatch.setattr(import_module("spikesink.access.load"), "verify_layers", fails)
    return tiny("llama", vocab_size=97)


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def expected(model):
    return numbers(scan(model, IDS))


def test_wrapped_models(model, expected):
    assert numbers(scan(torch.nn.DataParallel(model), IDS)) == expected
    assert numbers(scan(torch.compile(model), IDS)) == expected


def test_what_is_no_model():
    with pytest.raises(UnsupportedModelError, match=r"type Linear; expected a Hugging Face causal LM"):
        scan(torch.nn.Linear(2, 2), IDS)


def test_ids_as_lists(model, expected):
    assert numbers(scan(model, IDS.tolist())) == expected
    with pytest.raises(InputError, match="expected rows of one length"):
        scan(model, [[1, 2, 3], [4, 5]])


def test_masks_of_any_kind(model):
    valid = torch.ones(3, 13, dtype=torch.bool)
    valid[1, 9:] = False
    padded = numbers(scan(model, IDS, valid=valid))
    assert padded != numbers(scan(model, IDS))
    for other in (valid.long(), valid.numpy(), valid.float(), valid.tolist(), valid.long().numpy()):
        assert numbers(scan(model, IDS, valid=other)) == padded


@pytest.mark.parametrize(
    ("valid", "words"),
    [
        (np.ones((3, 12)), r"shape \(3, 12\); expected that of the token ids, \(3, 13\)"),
        (2 * np.ones((3, 13)), "other values than 0 and 1"),
        (np.array([[1] * 13, [0] * 13, [1] * 13]), "no token of sequence 1"),
        (np.tile(np.arange(13) % 3 == 0, (3, 1)), "no two tokens in a row"),
    ],
)
def test_masks_that_are_none(model, valid, words):
    with pytest.raises(InputError, match=words):
        scan(model, IDS, valid=valid)


class Encoding(UserDict):
    """What a tokenizer returns: attributes are its entries."""


def test_what_a_tokenizer_returns(model, expected):
    """Its attention mask counts, unless another is given."""
    mask = torch.ones(3, 13, dtype=torch.int64)
    assert numbers(scan(model, Encoding(input_ids=IDS, attention_mask=mask))) == expected
    assert numbers(scan(model, {"input_ids": IDS.tolist()})) == expected
    mask[1, 9:] = 0
    padded = Encoding(input_ids=IDS, attention_mask=mask)
    assert numbers(scan(model, padded)) == numbers(scan(model, IDS, valid=mask)) != expected
    assert numbers(scan(model, padded, valid=torch.ones_like(mask))) == expected
    with pytest.raises(InputError, match="padded, by their attention_mask"):
        find(model, padded)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["text"], "Got text as token ids; expected integers.*scan\\(model, text="),
        ("text", "Got text as token ids"),
        ([["a", "b"]], "Got text as token ids"),
        ([[[1, 2], [3, 4]]], r"shape \(1, 2, 2\); expected \(sequences, seq_len\)"),
        ([1, 2, 3], r"shape \(3,\).*For one sequence use ids\[None, :\]"),
        ([[1, 2], [3]], "have rows of 1 to 2; expected rows of one length"),
        ([[1.0, 2.0]], "type float64; expected integers"),
        (None, "type object; expected integers|neither token ids nor text="),
        ([[1, -100]], "Padding such as -100"),
        ([[1, 97]], r"Token id 97 \(sequence 0, position 1\) is outside the model's vocabulary of 97"),
        ([[1] * 513], "beyond the model's 512 positions"),
        ({"ids": [[1, 2]]}, "mapping with ids; expected input_ids"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1, 1]]}, r"valid has shape \(1, 3\)"),
    ],
)
@pytest.mark.parametrize("function", [scan, find, dissociate])
def test_ids_are_refused_before_the_model_is_verified(unverified, function, tokens, words):
    if function is dissociate and isinstance(tokens, list) and len(tokens) == 1 and not isinstance(tokens[0], str):
        tokens = tokens * 4
        words = words.replace("(1, ", "(4, ")
    with pytest.raises(InputError, match=words):
        function(unverified, tokens)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"valid": np.ones((3, 12))}, "valid has shape"),
        ({"epsilon": 1.5}, "epsilon is 1.5"),
        ({"epsilon": "0.3"}, "epsilon is '0.3'; expected a number"),
        ({"sink_metric": "sun2025"}, "did you mean 'sun2026'"),
        ({"batch_size": 0}, "batch_size is 0; expected at least 1"),
        ({"batch_size": 2.0}, r"batch_size is 2\.0"),
        ({"measures": ("headz",)}, "Unknown measure 'headz'.*did you mean 'heads'"),
        ({"measures": "headz"}, "Unknown measure 'headz'"),
    ],
)
def test_options_are_refused_before_the_model_is_verified(unverified, options, words):
    with pytest.raises(InputError, match=words):
        scan(unverified, IDS, **options)


def test_a_measure_by_its_name_alone(model):
    assert scan(model, IDS, measures="heads").heads == scan(model, IDS, measures=("heads",)).heads


@pytest.mark.parametrize("model", [7, {"a": 1}, IDS.tolist()])
def test_models_that_are_none(model):
    with pytest.raises(InputError, match=f"Got a model of type {type(model).__name__}; expected a name or path"):
        scan(model, IDS)


@pytest.mark.parametrize("ids", [["text"], [[1, 97]], [[1, -100]], [1, 2], [[1.5, 2.5]]])
def test_probe_ids_are_refused_before_the_model_is_verified(unverified, ids):
    with pytest.raises(InputError):
        AnatomyMonitor(unverified, ids)


def test_paths_as_text(model, tmp_path):
    folder = str(tmp_path / "record")
    record = scan(model, IDS)
    record.save(folder)
    assert Anatomy.read(folder).summary == record.summary
    np.save(tmp_path / "ids.npy", IDS.numpy())
    assert (load_token_ids(str(tmp_path / "ids.npy")).ids == IDS.numpy()).all()
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert list(read_corpus(str(tmp_path / "a.txt")).documents()) == ["one", "two"]
    targets = find(model, IDS)
    assert dissociate(model, token_ids(4, 9), which="drop_bos", folder=str(tmp_path / "run")).found
    assert targets.sequences == len(IDS)


def test_positions_of_a_scaled_rotation(expected):
    """The config's limit is the length before scaling: four times as many positions are there."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    model = tiny("llama", max_position_embeddings=16, rope_parameters=rope)
    scan(model, token_ids(2, 64))
    with pytest.raises(InputError, match="65 tokens are beyond the model's 64 positions"):
        scan(model, token_ids(2, 65))


@pytest.mark.parametrize("tokens", [2, 3])
def test_edits_of_the_input_on_short_sequences_are_rows_that_do_not_apply(model, tokens):
    ids = token_ids(8, tokens)
    ids[:, 0] = model.config.bos_token_id
    record = dissociate(model, ids, which="input", held_out=4, draws=1)
    rows = {row.name: row for row in record.interventions}
    assert rows["repeat_bos"].applicable
    for name in ("move_bos", "move_bos/second_token") + (("drop_bos",) if tokens == 2 else ()):
        assert not rows[name].applicable
        assert f"{tokens} tokens are too short" in rows[name].reason
