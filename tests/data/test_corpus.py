"""Documents from every kind of source, and what of a source gets into the record."""

import copy
import csv
import gzip
import hashlib
import io
import json
import random
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow
import pyarrow.parquet
import pytest

from spikesink.data import default_corpus, prompt_corpus, read_corpus
from spikesink.data.chat_template import ChatTemplate
from spikesink.data.corpus import as_corpus, hub_corpus
from spikesink.data.files import Conversation
from spikesink.data.packed import is_held_out
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
    monkeypatch.setattr("spikesink.data.files.MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("x" * 5000)
    with pytest.raises(InputError, match="line 1, is longer"):
        list(read_corpus(path).documents())


def test_a_pipe_is_refused_at_once(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(InputError, match="not a regular file"):
        read_corpus(tmp_path / "a.txt")


CONVERSATION = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "Three."}]
SHAREGPT = [{"from": "human", "value": "Größe?"}, {"from": "gpt", "value": "Three."}]


def rows_in(path, rows):
    """The rows in the format that the file's name says."""
    from datasets import Dataset

    kind = path.suffixes[0] if path.suffix else "folder"
    lines = "\n".join(json.dumps(row) for row in rows)
    if kind == ".json":
        lines = json.dumps(rows)
    elif kind == ".csv":
        with io.StringIO(newline="") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
            lines = out.getvalue()
    if kind == "folder":
        Dataset.from_list(rows).save_to_disk(path)
    elif kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(lines.encode())
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.zst", "a.csv.gz", "folder"]
)
@pytest.mark.parametrize("field", [None, "body"])
def test_every_format_gives_the_same_documents(tmp_path, name, field):
    texts = [*DOCUMENTS, 'two\nlines, "quoted"']
    path = rows_in(tmp_path / name, [{"n": number, field or "text": text} for number, text in enumerate(texts)])
    corpus = read_corpus(path, field)
    assert list(corpus.documents()) == texts
    assert list(corpus.documents()) == texts
    assert corpus.sha256 and (field or "text") in corpus.description
    with pytest.raises(InputError, match=r"no (field|column) 'other'.*--field NAME"):
        list(read_corpus(path, "other").documents())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text\none, two\n", r"line 2, has 2 value\(s\); expected 1, one a column.*Quote values that hold commas"),
        ("id,text,label\n0,a,b\n1,hello\nworld,c\n", r"line 3, has 2 value\(s\); expected 3"),
        ('id,text\n0,"a\nb"\n1,a,b\n', r"line 4, has 3 value\(s\)"),
        ("text,id,text\na,0,b\n", "has 2 columns 'text'; expected one"),
        ("", "no column 'text'; its columns are: none"),
    ],
    ids=["comma", "line end", "below a line end", "twice", "empty"],
)
def test_a_csv_of_which_something_would_be_cut_off(tmp_path, content, words):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=words):
        list(read_corpus(tmp_path / "a.csv").documents())


def test_blank_lines_of_a_csv_are_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text('\ntext\n\n"one, two"\n\nthree\n')
    assert list(read_corpus(tmp_path / "a.csv").documents()) == ["one, two", "three"]


def test_packed_text(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n".join(DOCUMENTS).encode()))
    assert list(read_corpus(tmp_path / "a.txt.gz").documents()) == DOCUMENTS
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(random.randbytes(3000).hex().encode())[:-40])
    (tmp_path / "none.txt.gz").write_bytes(b"no such thing")
    (tmp_path / "none.txt.zst").write_bytes(b"no such thing")
    for name in ("cut.txt.gz", "none.txt.gz", "none.txt.zst"):
        with pytest.raises(InputError, match=rf"{name}.* cannot be read.*truncated or corrupt"):
            list(read_corpus(tmp_path / name).documents())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_by_their_mark(tmp_path, encoding):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "a.txt").write_bytes(mark + "\r\n".join(DOCUMENTS).encode(encoding))
    assert list(read_corpus(tmp_path / "a.txt").documents()) == DOCUMENTS
    rows = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in DOCUMENTS)
    (tmp_path / "a.jsonl").write_bytes(mark + rows.encode(encoding))
    assert list(read_corpus(tmp_path / "a.jsonl").documents()) == DOCUMENTS


def test_other_encodings_are_refused(tmp_path):
    for name, content in (
        ("half", b"\xff\xfeab\x00"),
        ("bare", "abc".encode("utf-16-le")),
        ("utf32", "abc".encode("utf-32")),
    ):
        (tmp_path / f"{name}.txt").write_bytes(content)
        with pytest.raises(InputError, match="convert it to UTF-8"):
            list(read_corpus(tmp_path / f"{name}.txt").documents())


@pytest.mark.parametrize(
    "rows", [{"messages": CONVERSATION}, {"conversations": SHAREGPT}], ids=["messages", "sharegpt"]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "folder"])
def test_conversations(tmp_path, rows, name):
    corpus = read_corpus(rows_in(tmp_path / name, [rows, rows]))
    assert list(corpus.texts_and_conversations()) == [Conversation(CONVERSATION)] * 2
    with pytest.raises(InputError, match=r"holds conversations; expected plain text here.*--field NAME"):
        list(corpus.documents())


CALL = {"type": "function", "function": {"name": "add", "arguments": "1 2"}}
TOOL_TALK = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "name": "add"},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "folder"])
def test_conversations_are_whole(tmp_path, name):
    """With what a message has beside its content, without what is null, as every missing key is in a parquet file."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = {"messages": [TOOL_TALK[0], {**TOOL_TALK[1], "content": None}, TOOL_TALK[2]], "tools": tools}
    corpus = read_corpus(rows_in(tmp_path / name, [row, {**row, "tools": None}]))
    assert list(corpus.texts_and_conversations()) == [Conversation(TOOL_TALK, tools), Conversation(TOOL_TALK)]


def test_tools_as_json_in_a_string(tmp_path):
    rows = [{"conversations": SHAREGPT, "tools": tools} for tools in ('[{"name": "add"}]', "", ['{"name": "add"}'], {})]
    corpus = read_corpus(rows_in(tmp_path / "a.jsonl", rows))
    expected = [Conversation(CONVERSATION, [{"name": "add"}]), Conversation(CONVERSATION)] * 2
    assert list(corpus.texts_and_conversations()) == expected


def test_rows_of_a_table_do_not_mix(tmp_path):
    """Arrow gives every object the keys of all rows; a null that a JSON file says is meant."""
    rows = [
        {"messages": [{"role": "user", "content": name}],
         "tools": [{"type": "function", "function": {"name": name, "parameters": {name: {"type": "string"}}}}]}
        for name in ("city", "zone")
    ]  # fmt: skip
    for name in ("a.parquet", "folder", "a.jsonl"):
        made = list(read_corpus(rows_in(tmp_path / name, rows)).texts_and_conversations())
        assert made == [Conversation(row["messages"], row["tools"]) for row in rows]
    meant = {**rows[0], "tools": [{"default": None}]}
    (made,) = read_corpus(rows_in(tmp_path / "b.jsonl", [meant])).texts_and_conversations()
    assert made.tools == meant["tools"]


def test_what_a_message_has_beside_its_content_may_be_no_json(tmp_path, word_tokenizer):
    """Time stamps, as WildChat has them; a template may ask for them as text."""
    row = {"messages": [{"role": "user", "content": "hello", "timestamp": datetime(2026, 11, 28, tzinfo=UTC)}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (conversation,) = read_corpus(tmp_path / "a.parquet").texts_and_conversations()
    assert is_held_out(conversation) in (True, False)
    words = copy.deepcopy(word_tokenizer)
    words.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} ({{ m.timestamp }}){% endfor %}"
    template = ChatTemplate(words)
    assert template.render(conversation.messages, prompt=False) == "user: hello (2026-11-28 00:00:00+00:00)"
    template.close()


def test_a_program_ends_cleanly_that_still_holds_a_template():
    """A thread that read from the template's process while the interpreter ended would abort it."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_limits import tokenizer\n"
        "from spikesink.data.chat_template import ChatTemplate\n"
        "made = tokenizer()\n"
        "made.chat_template = '<{{ messages[0].content }}>'\n"
        "kept = ChatTemplate(made)\n"
        "print(kept.render([{'role': 'user', 'content': 'a'}]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "<a>\n", "")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_system_prompt_beside_the_conversation_is_its_first_message(tmp_path, name):
    rows = [{"conversations": SHAREGPT, "system": system} for system in ("Be brief.", "", None)]
    first, *others = read_corpus(rows_in(tmp_path / name, rows)).texts_and_conversations()
    assert first == Conversation([{"role": "system", "content": "Be brief."}, *CONVERSATION])
    assert others == [Conversation(CONVERSATION)] * 2
    twice = {"messages": first.messages, "system": "Be brief."}
    assert list(read_corpus(rows_in(tmp_path / f"b{name}", [twice])).texts_and_conversations()) == [first]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"messages": [{"role": "system", "content": "A"}], "system": "B"}, "another system prompt in field"),
        ({"messages": CONVERSATION, "system": ["x"]}, "field 'system' has no role and content"),
        ({"messages": CONVERSATION, "tools": {"name": "add"}}, "'tools' of type dict; expected a list of objects"),
        ({"messages": CONVERSATION, "tools": "add"}, "field 'tools' is not valid JSON"),
        ({"messages": [{"role": "user"}]}, "message 1 of 'messages' has no role and content"),
        ({"messages": ["hello"]}, "message 1 of 'messages' is a str"),
        ({"messages": 3}, "field 'messages' of type int"),
    ],
)
def test_conversations_that_are_none(tmp_path, content, words):
    (tmp_path / "a.jsonl").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        list(read_corpus(tmp_path / "a.jsonl").texts_and_conversations())


def test_a_json_of_one_list(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "data": [{"text": text} for text in DOCUMENTS]}))
    assert list(read_corpus(tmp_path / "a.json").documents()) == DOCUMENTS
    (tmp_path / "a.json").write_text(json.dumps({"text": "one"}))
    assert list(read_corpus(tmp_path / "a.json").documents()) == ["one"]


def test_folders_that_are_no_data_set(tmp_path):
    from datasets import Dataset, DatasetDict

    with pytest.raises(InputError, match="is a folder; expected"):
        read_corpus(tmp_path)
    part = Dataset.from_list([{"text": "a"}])
    DatasetDict(train=part, test=part).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"several splits; give one of them: .*both/train, .*both/test"):
        read_corpus(tmp_path / "both")
    assert list(read_corpus(tmp_path / "both" / "train").documents()) == ["a"]


def test_line_ends_alone_count_towards_the_size_of_a_json(tmp_path, monkeypatch):
    monkeypatch.setattr("spikesink.data.files.MAX_JSON_BYTES", 1000)
    (tmp_path / "a.json").write_text("\n" * 900 + '[{"text": "a"}]')
    assert list(read_corpus(tmp_path / "a.json").documents()) == ["a"]
    (tmp_path / "a.json").write_text("\n" * 1000 + '[{"text": "a"}]')
    with pytest.raises(InputError, match="is larger than"):
        list(read_corpus(tmp_path / "a.json").documents())


def test_a_list_of_texts_is_a_corpus():
    corpus = as_corpus(["one", " ", "two"])
    assert list(corpus.documents()) == list(corpus.documents()) == ["one", "two"]
    assert corpus.sha256 != as_corpus(["one", "two"]).sha256
    for other in ("one text", [1, 2], None):
        with pytest.raises(InputError, match="expected a list of texts, or a corpus"):
            as_corpus(other)
    with pytest.raises(InputError, match="Text 1 of the list holds a lone surrogate"):
        as_corpus(["a", "\ud800"])
