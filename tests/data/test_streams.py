"""Training data by index: the bigram-backcopy chain, packed token files, the standard library's source."""

import itertools

import numpy as np
import pytest

from spikesink.data.bigram_backcopy import BigramSampler, bigram_backcopy
from spikesink.data.corpus import Corpus, prompt_corpus, python_source
from spikesink.data.packed import PackedSampler, is_held_out, write_token_file
from spikesink.data.tokenizers import character_tokenizer, train_bpe
from spikesink.errors import InputError, OutputError


@pytest.fixture(scope="module")
def chain():
    return bigram_backcopy(20, 3)


def test_bigrams_by_hand():
    """'abab ca': the counts of neighbours, plus one for each pair of the characters kept."""
    chain = bigram_backcopy(4, 1, prompt_corpus("ababcbb"))
    assert chain.tokens == ("<bos>", "b", "a", "c")
    # ab, ba, ab, bc, cb, bb over rows b, a, c and columns b, a, c
    counts = np.array([[1, 1, 1], [2, 0, 0], [1, 0, 0]]) + 1.0
    assert chain.next_token[1:, 1:] == pytest.approx(counts / counts.sum(1, keepdims=True))
    assert (chain.next_token[:, 0] == 0).all()
    # The first character: how often each comes second, without the trigger b.
    assert chain.next_token[0] == pytest.approx(np.array([0, 0, 4, 4]) / 8)
    assert chain.triggers == {1}


def test_after_a_trigger_comes_the_token_before_it(chain):
    sampler = BigramSampler(chain, 40, bos=True, seed=1)
    copies = 0
    for index in range(50):
        ids = sampler.sample(index).tolist()
        assert ids[0] == 0 and 0 not in ids[1:]
        assert ids[1] not in chain.triggers
        for position in range(2, 39):
            if ids[position] in chain.triggers:
                copies += 1
                assert ids[position + 1] == ids[position - 1]
    assert copies > 300


def test_other_tokens_follow_the_bigrams(chain):
    sampler = BigramSampler(chain, 200, bos=False, seed=2)
    ids = np.stack([sampler.sample(index) for index in range(300)])
    common = next(token for token in range(20) if token not in chain.triggers and token > 0)
    after = ids[:, 1:][ids[:, :-1] == common]
    observed = np.bincount(after, minlength=20) / len(after)
    assert len(after) > 2000
    assert np.abs(observed - chain.next_token[common]).max() < 4 * np.sqrt(0.25 / len(after))


def test_a_sample_depends_on_seed_and_index_alone(chain):
    sampler = BigramSampler(chain, 30, bos=True, seed=5)
    forwards = [sampler.sample(index).tolist() for index in range(6)]
    again = BigramSampler(chain, 30, bos=True, seed=5)
    assert [again.sample(index).tolist() for index in (5, 2, 0)] == [forwards[5], forwards[2], forwards[0]]
    assert BigramSampler(chain, 30, bos=True, seed=6).sample(0).tolist() != forwards[0]
    held_out = [BigramSampler(chain, 30, bos=True, seed=5, stream=1).sample(index).tolist() for index in range(6)]
    assert not [row for row in held_out if row in forwards]
    without = BigramSampler(chain, 29, bos=False, seed=5).sample(3)
    assert without.tolist() == forwards[3][1:]


def test_a_chain_that_starts_again(chain):
    """BOS twice more, never first or second; behind it the first character's distribution, without triggers."""
    sampler = BigramSampler(chain, 12, bos=True, seed=1, restarts=2)
    places = set()
    for index in range(200):
        ids = sampler.sample(index).tolist()
        assert len(ids) == 12 and ids.count(0) == 3 and ids[0] == 0 and ids[1] != 0
        again = [place for place in range(1, 12) if ids[place] == 0]
        assert all(ids[place + 1] not in chain.triggers for place in again if place < 11)
        places |= set(again)
    assert places == set(range(2, 12))
    for options in ({"bos": True, "restarts": 11}, {"bos": False, "restarts": 1}):
        with pytest.raises(InputError, match="expected at most 10, and BOS"):
            BigramSampler(chain, 12, seed=1, **options)


def test_entropy_is_the_loss_of_the_true_chain(chain):
    """The mean of -log P of what came equals the mean entropy, within its standard error."""
    sampler = BigramSampler(chain, 100, bos=True, seed=3)
    ids = np.stack([sampler.sample(index) for index in range(400)])
    now, then = ids[:, :-1], ids[:, 1:]
    free = ~np.isin(now, sorted(chain.triggers))
    surprise = -np.log(chain.next_token[now[free], then[free]])
    expected = chain.conditional_entropy_nats()[now].sum() / free.sum()
    assert surprise.mean() == pytest.approx(expected, abs=4 * surprise.std() / np.sqrt(len(surprise)))


def test_too_small_texts_are_refused():
    with pytest.raises(InputError, match="has 3 distinct characters; a vocabulary of 9 needs 8"):
        bigram_backcopy(9, 2, prompt_corpus("abcabc"))
    with pytest.raises(InputError, match="at least 1 and 2 others"):
        bigram_backcopy(5, 3)
    with pytest.raises(InputError, match="seq_len is 2"):
        BigramSampler(bigram_backcopy(8, 2), 2, bos=True, seed=0)


DOCUMENTS = [f"document {index} says {'abcdefgh'[index % 8] * (index % 5 + 1)}." for index in range(200)]


@pytest.fixture(scope="module")
def letters():
    return character_tokenizer(("<bos>", *sorted(set("".join(DOCUMENTS)))))


def corpus(documents=DOCUMENTS):
    return Corpus("letters", "txt", "0" * 64, "a line", lambda: iter(documents))


def test_a_token_file_holds_every_document_on_one_side(letters, tmp_path):
    file = write_token_file(corpus(), letters, tmp_path / "file")
    expected = {"train": "", "held_out": ""}
    for document in DOCUMENTS:
        expected["held_out" if is_held_out(document) else "train"] += document
    assert letters.decode(file.train.tolist()).replace("<bos>", "") == expected["train"]
    assert letters.decode(file.held_out.tolist()) == expected["held_out"] != ""
    assert (file.meta["tokens"], file.meta["documents"]) == (len(expected["train"]), 200)
    assert file.train.dtype == np.dtype("<u2") and isinstance(file.train, np.memmap)


def test_a_token_file_is_written_once_and_whole(letters, tmp_path):
    first = write_token_file(corpus(), letters, tmp_path / "file")
    again = write_token_file(corpus([]), letters, tmp_path / "file")
    assert again.meta == first.meta

    def broken():
        yield from DOCUMENTS[:70]
        raise InputError("line 71 is not UTF-8")

    with pytest.raises(InputError, match="line 71"):
        write_token_file(Corpus("x", "txt", None, "", broken), letters, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == ["file"]
    (tmp_path / "blocked").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_token_file(corpus(), letters, tmp_path / "blocked" / "file")


def test_streaming_stops_at_the_limit(letters, tmp_path):
    endless = Corpus("endless", "hub", None, "", lambda: (f"{number:x}" * 9 for number in itertools.count()))
    file = write_token_file(endless, letters, tmp_path / "file", max_tokens=500)
    assert 500 <= file.meta["tokens"] < 500 + 64 * 9 * 4


@pytest.mark.parametrize("bos_id", [None, 7])
def test_every_pass_goes_through_every_piece_once(bos_id):
    stream = np.arange(100, 137)
    sampler = PackedSampler(stream, 5, bos_id=bos_id, seed=3)
    piece = 5 if bos_id is None else 4
    count = 37 // piece
    passes = [[sampler.sample(number * count + place) for place in range(count)] for number in range(3)]
    for rows in passes:
        assert all(len(row) == 5 and row.dtype == np.int64 for row in rows)
        starts = [row if bos_id is None else row[1:] for row in rows]
        assert bos_id is None or all(row[0] == bos_id for row in rows)
        assert sorted(np.concatenate(starts).tolist()) == list(range(100, 100 + count * piece))
    assert [row.tolist() for row in passes[0]] != [row.tolist() for row in passes[1]]
    again = PackedSampler(stream, 5, bos_id=bos_id, seed=3)
    assert again.sample(count + 2).tolist() == passes[1][2].tolist()
    assert sampler.first(2)[1, -piece:].tolist() == list(range(100 + piece, 100 + 2 * piece))
    with pytest.raises(InputError, match="make no sequence of 50"):
        PackedSampler(stream, 50, bos_id=None, seed=0)


def test_text_behind_a_second_bos():
    """Every token of the text once a pass, BOS at the start and at two places more, never second; by index alone."""
    stream = np.arange(100, 137)
    sampler = PackedSampler(stream, 7, bos_id=3, seed=5, restarts=2)
    rows = [sampler.sample(index).tolist() for index in range(9)]
    assert sampler.pieces == 9
    assert all(len(row) == 7 and row[0] == 3 and row[1] != 3 and row.count(3) == 3 for row in rows)
    assert sorted(token for row in rows for token in row if token != 3) == list(range(100, 136))
    assert all([token for token in row if token != 3] == list(range(min(row[1:2]), row[1] + 4)) for row in rows)
    places = {place for row in rows for place in range(1, 7) if row[place] == 3}
    assert places == {2, 3, 4, 5, 6}
    assert PackedSampler(stream, 7, bos_id=3, seed=5, restarts=2).sample(6).tolist() == rows[6]
    assert sampler.first(2)[:, 1].tolist() == [100, 104]


END = 9
"""BOS and what ends a document, as in GPT-2's tokenizer."""
ENDED = np.array([END, 1, 2, 3, END, END, 4, 5, 6, 7, END, 8, 10, 11, END, 12, END])


def test_bos_is_never_doubled():
    """Pieces of 4 begin at 0, 4, 8 and 12; the first two, which begin with BOS, are cut from behind it."""
    sampler = PackedSampler(ENDED, 5, bos_id=END, seed=3)
    expected = [[END, 1, 2, 3, END], [END, 4, 5, 6, 7], [END, 6, 7, END, 8], [END, 10, 11, END, 12]]
    assert sampler.first(9).tolist() == expected
    assert sorted(sampler.sample(index).tolist() for index in range(4)) == sorted(expected)
    assert sampler.sample(6).tolist() == PackedSampler(ENDED, 5, bos_id=END, seed=3).sample(6).tolist()
    assert PackedSampler(ENDED, 4, bos_id=None, seed=3).first(1).tolist() == [[END, 1, 2, 3]]


def test_a_last_piece_without_room_behind_its_bos_is_left_out():
    # The last piece, END 5, would need one token more.
    assert PackedSampler(np.array([1, 2, 3, 4, END, 5]), 3, bos_id=END, seed=0).first(9).tolist() == [
        [END, 1, 2],
        [END, 3, 4],
    ]
    assert PackedSampler(np.array([1, 2, 3, 4, END, 5, 6]), 3, bos_id=END, seed=0).first(9)[2].tolist() == [END, 5, 6]
    with pytest.raises(InputError, match="2 tokens make no sequence of 3"):
        PackedSampler(np.array([END, 5]), 3, bos_id=END, seed=0)


@pytest.mark.parametrize("bos_id", [None, 0])
def test_where_bos_ends_no_document_batches_stay_what_they_were(bos_id):
    """Byte for byte what a plain cut of the stream gives, over more than two passes."""
    stream = np.random.default_rng(5).integers(1, 40, 1003).astype("<u2")
    sampler = PackedSampler(stream, 17, bos_id=bos_id, seed=11)
    piece = 17 - (bos_id is not None)
    cut = stream[: len(stream) // piece * piece].reshape(-1, piece).astype(np.int64)
    rows = cut if bos_id is None else np.pad(cut, ((0, 0), (1, 0)), constant_values=bos_id)
    orders = [np.random.default_rng([11, number]).permutation(len(rows)) for number in range(3)]
    for index in range(2 * len(rows) + 5):
        assert sampler.sample(index).tobytes() == rows[orders[index // len(rows)][index % len(rows)]].tobytes()
    assert sampler.pieces == len(rows)


def test_python_source_is_the_standard_library():
    source = python_source()
    documents = source.documents()
    assert len(source.sha256) == 64 and source.sha256 == python_source().sha256
    total = sum(len(text) for text in documents)
    assert total > 5_000_000
    assert any("class Fraction(" in text for text in source.documents())
    assert "site-packages" not in source.description


def test_a_trained_tokenizer_loses_nothing_and_is_cached(tmp_path):
    text = "def naïve(x):\n\treturn '→' * x  # 漢字\n"
    tokenizer = train_bpe(corpus([*DOCUMENTS, text]), 300, tmp_path / "bpe")
    assert len(tokenizer) == 300 and tokenizer.bos_token_id == 0 and tokenizer.eos_token_id == 1
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    cached = train_bpe(corpus([]), 300, tmp_path / "bpe")
    assert cached.get_vocab() == tokenizer.get_vocab()
