"""BOS policies, cutting and packing, with tokenizers that add a BOS, an EOS, both or nothing by themselves."""

import json
import string

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from spikesink.data import Tokens, check_ids, load_token_ids, prompt_corpus, read_corpus, tokenise
from spikesink.data.tokenizers import character_tokenizer
from spikesink.errors import InputError

BOS, EOS = 1, 2


def tokenizer(template: str = "$A", **special):
    """Words w3 ... w40; `template` is what it makes of a text by itself, e.g. "<s> $A </s>"."""
    words = {"<unk>": 0, "<s>": BOS, "</s>": EOS, **{f"w{i}": i for i in range(3, 41)}}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=made, **options)


@pytest.fixture
def corpus(tmp_path):
    """Documents of 6, 2 and 5 words."""
    path = tmp_path / "a.txt"
    path.write_text("w3 w4 w5 w6 w7 w8\nw9 w10\nw11 w12 w13 w14 w15\n")
    return read_corpus(path)


@pytest.mark.parametrize("template", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_bos_policies(corpus, template, bos):
    made = tokenise(corpus, tokenizer(template), seq_len=4, sequences=9, bos=bos)
    first = bos == "always" or (bos == "auto" and template.startswith("<s>"))
    expected = [[BOS, 3, 4, 5], [BOS, 11, 12, 13]] if first else [[3, 4, 5, 6], [11, 12, 13, 14]]
    assert made.ids.tolist() == expected
    assert (made.bos, made.bos_added) == (bos, first)
    # The second document is too short in every case.
    assert (made.documents, made.skipped_short) == (3, 1)


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
@pytest.mark.parametrize("template", ["$A", "<s> $A"])
def test_a_text_that_begins_with_bos_is_never_doubled(template, bos):
    made = tokenise(prompt_corpus("<s> w3 w4 w5"), tokenizer(template), seq_len=9, sequences=1, bos=bos)
    assert made.ids.tolist() == [[3, 4, 5] if bos == "never" else [BOS, 3, 4, 5]]


def test_packing_puts_eos_between_documents_and_bos_before_sequences(corpus):
    made = tokenise(corpus, tokenizer("<s> $A"), seq_len=5, sequences=3, pack=True)
    assert made.ids.tolist() == [[BOS, 3, 4, 5, 6], [BOS, 7, 8, EOS, 9], [BOS, 10, EOS, 11, 12]]
    assert made.packed
    plain = tokenise(corpus, tokenizer(eos_token=None), seq_len=5, sequences=3, pack=True, bos="never")
    assert plain.ids.tolist() == [[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]


def test_packing_never_doubles_a_bos_that_also_ends_documents(corpus):
    """The cut after w3 w4 w5 w6 w7 w8 falls on the end of the document, whose token is BOS too."""
    made = tokenise(corpus, tokenizer(eos_token="<s>"), seq_len=7, sequences=2, pack=True, bos="always")
    assert made.ids.tolist() == [[BOS, 3, 4, 5, 6, 7, 8], [BOS, 9, 10, BOS, 11, 12, 13]]


def test_a_document_of_nothing_but_bos_makes_no_two_of_them(tmp_path):
    """Found by fuzzing: what ends it is BOS as well, and the tokenizer itself puts none first."""
    path = tmp_path / "a.txt"
    path.write_text("<s>\nw3 w4 w5\nw6 w7 w8\n")
    made = tokenise(read_corpus(path), tokenizer(eos_token="<s>"), seq_len=4, sequences=2, pack=True)
    assert made.ids.tolist() == [[BOS, 3, 4, 5], [BOS, 6, 7, 8]]


def test_fewer_sequences_than_asked_for_and_none(corpus):
    assert tokenise(corpus, tokenizer(), seq_len=6, sequences=5).ids.tolist() == [[3, 4, 5, 6, 7, 8]]
    with pytest.raises(InputError, match="longest has 6"):
        tokenise(corpus, tokenizer(), seq_len=7, sequences=5)


def test_a_prompt_keeps_its_length():
    made = tokenise(prompt_corpus("w3 w4 w5"), tokenizer(), seq_len=64, sequences=64)
    assert made.ids.tolist() == [[3, 4, 5]]


def test_a_long_document_is_encoded_from_its_beginning(tmp_path):
    words = [f"w{3 + (i * i) % 38}" for i in range(40_000)]
    path = tmp_path / "long.txt"
    path.write_text(" ".join(words))
    made = tokenise(read_corpus(path), tokenizer(), seq_len=700, sequences=1)
    assert made.ids.tolist() == [[int(word[1:]) for word in words[:700]]]


def test_always_without_a_bos_token_is_refused(corpus):
    with pytest.raises(InputError, match="no BOS token"):
        tokenise(corpus, tokenizer(bos_token=None), seq_len=4, sequences=1, bos="always")


def test_chat_template(corpus):
    made = tokenizer("<s> $A")
    made.chat_template = "<s>{% for m in messages %} w40 {{ m['content'] }} w39{% endfor %}"
    ids = tokenise(corpus, made, seq_len=5, sequences=1, chat_template=True)
    assert ids.ids.tolist() == [[BOS, 40, 3, 4, 5]]
    assert ids.chat_template


def test_ids_from_a_file(tmp_path):
    ids = np.arange(12, dtype=np.uint16).reshape(3, 4)
    np.save(tmp_path / "ids.npy", np.asfortranarray(ids))
    made = load_token_ids(tmp_path / "ids.npy")
    assert made.ids.tolist() == ids.tolist()
    assert made.ids.dtype == np.int64
    assert made.provenance()["ids_sha256"] == Tokens.from_ids(ids).provenance()["ids_sha256"]
    assert json.dumps(made.provenance())


def test_ids_are_checked_against_the_model():
    tokens = Tokens.from_ids(np.array([[0, 1, 2], [3, 9, 1]]))
    check_ids(tokens, vocab_size=10, max_positions=3)
    with pytest.raises(InputError, match=r"id 9 \(sequence 1, position 1\).*vocabulary of 9"):
        check_ids(tokens, vocab_size=9, max_positions=None)
    with pytest.raises(InputError, match="beyond the model's 2 positions"):
        check_ids(tokens, vocab_size=10, max_positions=2)


@pytest.mark.embedded
def test_the_embedded_tokenizer_adds_no_bos_by_itself(embedded):
    text = "Attention sinks are tokens that many heads attend to."
    plain = tokenise(prompt_corpus(text), embedded.tokenizer, seq_len=64, sequences=1)
    always = tokenise(prompt_corpus(text), embedded.tokenizer, seq_len=64, sequences=1, bos="always")
    assert plain.ids[0].tolist() == embedded.tokenizer(text, add_special_tokens=False).input_ids
    assert always.ids[0].tolist() == [embedded.tokenizer.bos_token_id, *plain.ids[0].tolist()]
    assert (plain.bos_added, always.bos_added) == (False, True)


PARTS = "{% for m in messages %}{% if m.content is not string %}{{ m.content[0].text }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("template", ["A fixed text.", PARTS], ids=["fixed", "parts only"])
def test_a_template_that_drops_the_text_is_refused(template, tmp_path):
    made = character_tokenizer(("<bos>", *string.printable))
    made.chat_template = template
    with pytest.raises(InputError, match="does not write what the user says"):
        tokenise(prompt_corpus("abc"), made, seq_len=4, sequences=1, chat_template=True)


def test_a_template_that_fills_the_sequence_is_refused(tmp_path):
    made = character_tokenizer(("<bos>", *string.printable))
    made.chat_template = "You are helpful. {{ messages[0].content }}"
    (tmp_path / "a.txt").write_text("one text\nand another\n")
    corpus = read_corpus(tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"All 2 sequences are the same 9 tokens.*larger seq_len \(--seq-len\)"):
        tokenise(corpus, made, seq_len=9, sequences=2, chat_template=True)
    ids = tokenise(corpus, made, seq_len=20, sequences=2, chat_template=True).ids
    assert [made.decode(row) for row in ids] == ["You are helpful. one", "You are helpful. and"]


def test_conversations_go_through_the_template(tmp_path):
    """With the answer's beginning only where the user spoke last."""
    made = character_tokenizer(("<bos>", *string.printable))
    made.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    talks = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}],
        [{"from": "human", "value": "Hello!"}],
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"conversations": talk}) for talk in talks))
    tokens = tokenise(read_corpus(tmp_path / "a.jsonl"), made, seq_len=11, sequences=2)
    assert [made.decode(row) for row in tokens.ids] == ["u:Hi;a:Yes;", "u:Hello!;a:"]
    assert tokens.chat_template
    assert tokenise(["Hi"], made, seq_len=2, sequences=1).chat_template is False


def test_tools_and_calls_reach_the_template_as_transformers_has_it(tmp_path):
    """Of templates by name, the one for tools where a row has them."""
    made = character_tokenizer(("<bos>", *string.printable))
    written = (
        "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{% for m in messages %}{{ m.role }}"
        "{% if m.name is defined %}({{ m.name }}){% endif %}:{{ m.content }};"
        "{% for c in m.tool_calls or [] %}[{{ c.function.name }}{{ c.function.arguments | tojson }}]{% endfor %}"
        "{% endfor %}"
    )
    made.chat_template = {"default": written, "tool_use": "T" + written}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "3"},
    ]
    rows = [{"messages": talk, "tools": [{"type": "function", "function": {"name": "add"}}]}, {"messages": talk}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokens = tokenise(read_corpus(tmp_path / "a.jsonl"), made, seq_len=40, sequences=2)
    expected = [
        made.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=False, add_generation_prompt=True)
        for row in rows
    ]
    assert expected[0].startswith("T<add>user:Hi;") and '[add{"a": 1}]tool(add):3;' in expected[1]
    assert [made.decode(row) for row in tokens.ids] == [text[:40] for text in expected]


def test_conversations_without_a_template_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "w3 w4 w5"}]}))
    with pytest.raises(InputError, match=r"no chat template, which conversations and --chat-template need.*--field"):
        tokenise(read_corpus(tmp_path / "a.jsonl"), tokenizer(), seq_len=3, sequences=1)


def test_texts_in_a_list_are_documents(corpus):
    assert tokenise(["w3 w4", "w5 w6 w7"], tokenizer(), seq_len=2, sequences=2).ids.tolist() == [[3, 4], [5, 6]]
    with pytest.raises(InputError, match="type str; expected a list of texts"):
        tokenise("w3 w4", tokenizer(), seq_len=2, sequences=1)


def test_a_tokenizer_with_several_templates_and_no_default_is_refused():
    made = tokenizer()
    made.chat_template = {"one": "{{ messages[0].content }}", "two": "{{ messages[0].content }}"}
    with pytest.raises(InputError, match="chat template cannot be chosen"):
        tokenise(prompt_corpus("abc"), made, seq_len=4, sequences=1, chat_template=True)
