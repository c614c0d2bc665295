"""Documents from every kind of source, and what of a source gets into the record."""

import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest

from spikesink.data import default_corpus, prompt_corpus, read_corpus
from spikesink.data.corpus import hub_corpus
from spikesink.errors import InputError

DOCUMENTS = ["The first.", "Größe 東京 🙂", "a\\b \"c\" 'd'"]


def test_txt_is_a_document_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(("\ufeff" + "\r\n".join(DOCUMENTS) + "\n\n  \n").encode())
    corpus = read_corpus(path)
    assert list(corpus.documents()) == DOCUMENTS
    assert list(corpus.documents()) == DOCUMENTS, "a corpus can be read again"
    assert (corpus.name, corpus.kind) == ("a.txt", "txt")
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_jsonl_takes_the_field_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(DOCUMENTS)) + "\n\n")
    assert list(read_corpus(path).documents()) == DOCUMENTS


def test_a_line_break_inside_a_json_text_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one\ntwo"}))
    assert list(read_corpus(path).documents()) == ["one\ntwo"]


def test_parquet_takes_the_column_text(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [f"document {i}" for i in range(200)]
    pyarrow.parquet.write_table(pyarrow.table({"n": list(range(200)), "text": rows}), path, row_group_size=33)
    assert list(read_corpus(path).documents()) == rows


def test_parquet_without_text_names_its_columns(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [1], "body": ["x"]}), path)
    with pytest.raises(InputError, match=r"no column 'text'; its columns are: n, body"):
        list(read_corpus(path).documents())


def test_a_null_in_a_parquet_column_names_its_row(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), path)
    with pytest.raises(InputError, match="row 2"):
        list(read_corpus(path).documents())


def test_the_default_corpus_is_english_without_repetition():
    corpus = default_corpus()
    documents = list(corpus.documents())
    assert len(documents) == len(set(documents)) > 1000
    assert sum(len(document) > 500 for document in documents) > 50
    assert all("\n" not in document for document in documents)
    assert corpus.sha256 == default_corpus().sha256


def test_a_prompt_is_one_document():
    corpus = prompt_corpus("two\nlines")
    assert list(corpus.documents()) == ["two\nlines"]
    assert corpus.sha256 == hashlib.sha256(b"two\nlines").hexdigest()


@pytest.mark.parametrize("text", ["", " \n", "lone \ud800 surrogate"])
def test_a_prompt_that_is_none(text):
    with pytest.raises(InputError):
        prompt_corpus(text)


@pytest.mark.parametrize("name", ["", ":config", "a:b:c:d", "json", "parquet", "text"])
def test_names_that_are_no_data_set(name):
    with pytest.raises(InputError):
        hub_corpus(name)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("spikesink.data.corpus.MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("x" * 5000)
    with pytest.raises(InputError, match="line 1, is longer"):
        list(read_corpus(path).documents())


def test_a_pipe_is_refused_at_once(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match="not a regular file"):
        read_corpus(tmp_path / "a.txt")
