"""Caches of tokenizers and token files that a killed or a foreign process left behind are made again."""

import pytest

from spikesink.data import Corpus
from spikesink.data.packed import write_token_file
from spikesink.data.tokenizers import character_tokenizer, train_bpe
from spikesink.errors import OutputError

DOCUMENTS = [f"line {index} of a text that {'abcdefgh'[index % 8] * 3}" for index in range(120)]
CORPUS = Corpus("letters", "txt", "0" * 64, "a line", lambda: iter(DOCUMENTS))


@pytest.mark.parametrize("damage", ["half", "no config", "gone"])
def test_a_damaged_tokenizer(tmp_path, damage):
    folder = tmp_path / "bpe"
    whole = train_bpe(CORPUS, 290, folder)
    if damage == "half":
        content = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(content[: len(content) // 2])
    else:
        (folder / ("tokenizer_config.json" if damage == "no config" else "tokenizer.json")).unlink()
    again = train_bpe(CORPUS, 290, folder)
    assert again.get_vocab() == whole.get_vocab()
    assert (again.bos_token_id, again.eos_token_id) == (0, 1), "the special tokens are in the other file"


@pytest.mark.parametrize("damage", ["cut", "gone", "no JSON", "another type"])
def test_a_damaged_token_file(tmp_path, damage):
    tokenizer = character_tokenizer(("<bos>", *sorted(set("".join(DOCUMENTS)))))
    folder = tmp_path / "tokens"
    whole = write_token_file(CORPUS, tokenizer, folder)
    expected = whole.train.tolist()
    if damage == "cut":
        (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2])
    elif damage == "gone":
        (folder / "held_out.bin").unlink()
    else:
        (folder / "meta.json").write_text("{" if damage == "no JSON" else '{"dtype": "O", "tokens": "x"}')
    again = write_token_file(CORPUS, tokenizer, folder)
    assert again.train.tolist() == expected and again.meta == whole.meta


def test_a_tokenizer_on_a_full_disk(tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    def full(*_):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    with pytest.raises(OutputError, match="No space left"):
        train_bpe(CORPUS, 290, tmp_path / "bpe")
    assert [path.name for path in tmp_path.iterdir()] == ["bpe.lock"]
