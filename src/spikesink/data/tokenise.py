"""Text as token ids: cut, packed or whole, with what was done said."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikesink.data.corpus import Corpus, as_corpus
from spikesink.data.encode import Encoder
from spikesink.data.tokens import Tokens
from spikesink.errors import InputError


def tokenise(
    corpus: Corpus | Sequence[str],
    tokenizer: Any,
    *,
    seq_len: int,
    sequences: int,
    bos: str = "auto",
    pack: bool = False,
    chat_template: bool = False,
) -> Tokens:
    """The first `seq_len` tokens of each document until there are `sequences`; shorter documents are skipped.

    `bos`: auto = what the tokenizer (or its chat template) does by itself, always = exactly one BOS first, never =
    none; it counts among the `seq_len` tokens. Never a doubled BOS, and no end-of-sequence that a tokenizer adds.
    `pack` joins documents instead, with the end-of-sequence token between them where the tokenizer has one, and cuts
    the stream; what would begin a document (BOS) begins every sequence. A prompt is one sequence of its own length,
    whatever `seq_len`, `sequences` and `pack` say. Fewer sequences than asked for come back when the text ends; none
    at all raises InputError. corpus: also a list of texts. chat_template: wrap each text as a user's message;
    conversations always go through the template.
    """
    corpus = as_corpus(corpus)
    chat_template = chat_template or corpus.is_chat()
    encoder = Encoder(tokenizer, bos, chat_template)
    if corpus.kind == "prompt":
        made = _whole(corpus, encoder)
    else:
        _check_sizes(seq_len, sequences, encoder)
        made = (_packed if pack else _cut)(corpus, encoder, seq_len, sequences)
        if not made.rows:
            raise _nothing(corpus, made, seq_len, pack)
    ids = np.stack(made.rows)
    if chat_template and made.documents > 1 and len(ids) > 1 and bool((ids == ids[0]).all()):
        raise InputError(
            f"All {len(ids)} sequences are the same {ids.shape[1]} tokens: what the chat template writes before the "
            "text fills them. Use a larger seq_len (--seq-len)."
        )
    return Tokens(
        ids=ids,
        source=corpus.name,
        source_sha256=corpus.sha256,
        source_description=corpus.description,
        bos=bos,
        bos_added=bool((ids[:, 0] == encoder.bos_id).all()),
        packed=pack and corpus.kind != "prompt",
        chat_template=chat_template,
        skipped_short=made.skipped,
        documents=made.documents,
    )


def whole_texts(texts: str | Sequence[str], tokenizer: Any) -> tuple[Tokens, np.ndarray]:
    """Each text whole as a sequence of its own, with the BOS that the tokenizer puts there by itself, and which tokens
    are real: shorter texts are padded on the right.

    Raises InputError for what is no text, and for texts of fewer than two tokens.
    """
    documents = [texts] if isinstance(texts, str) else list(texts)
    if not documents or not all(isinstance(text, str) for text in documents):
        raise InputError(f"Got {texts!r:.200} as text; expected a string, or a list of strings.")
    encoder = Encoder(tokenizer, "auto", False)
    rows = [encoder.prefix + encoder.body(text) for text in documents]
    few = next((place for place, row in enumerate(rows) if len(row) < 2), None)
    if few is not None:
        raise InputError(f"Text {few} has {len(rows[few])} token(s); expected at least 2. Give a longer text.")
    ids = np.full((len(rows), max(map(len, rows))), rows[0][0], dtype=np.int64)
    valid = np.arange(ids.shape[1]) < np.array([len(row) for row in rows])[:, None]
    ids[valid] = np.concatenate(rows)
    return Tokens(
        ids=ids,
        source="text",
        source_sha256=hashlib.sha256("\n".join(documents).encode()).hexdigest(),
        source_description="a text as given, whole",
        bos="auto",
        bos_added=bool((ids[:, 0] == encoder.bos_id).all()),
        documents=len(documents),
    ), valid


@dataclass
class _Made:
    """Sequences so far and what was read for them; `longest` and `total` count tokens, for the error message."""

    rows: list[np.ndarray]
    documents: int = 0
    skipped: int = 0
    longest: int = 0
    total: int = 0

    def add(self, ids: Sequence[int]) -> None:
        # An array a sequence: Python integers would take several times the memory.
        self.rows.append(np.array(ids, dtype=np.int64))


def _check_sizes(seq_len: int, sequences: int, encoder: Encoder) -> None:
    if seq_len < 2:
        raise InputError(f"seq_len (--seq-len) is {seq_len}; expected at least 2: one token has nothing to predict.")
    if seq_len <= len(encoder.prefix):
        raise InputError(
            f"seq_len (--seq-len) is {seq_len}, but the tokenizer puts {len(encoder.prefix)} special tokens first; "
            "expected more."
        )
    if sequences < 1:
        raise InputError(f"sequences (--sequences) is {sequences}; expected at least 1.")


def _whole(corpus: Corpus, encoder: Encoder) -> _Made:
    ids = encoder.prefix + encoder.body(next(corpus.documents()))
    if len(ids) < 2:
        raise InputError(f"The prompt has {len(ids)} token(s); expected at least 2. Give a longer text.")
    made = _Made([], documents=1)
    made.add(ids)
    return made


def _cut(corpus: Corpus, encoder: Encoder, seq_len: int, sequences: int) -> _Made:
    made = _Made([])
    length = seq_len - len(encoder.prefix)
    for document in encoder.documents(corpus):
        made.documents += 1
        body = encoder.body(document, length)
        made.total += len(body)
        made.longest = max(made.longest, len(encoder.prefix) + len(body))
        if len(body) < length:
            made.skipped += 1
            continue
        made.add(encoder.prefix + body[:length])
        if len(made.rows) == sequences:
            break
    return made


def _packed(corpus: Corpus, encoder: Encoder, seq_len: int, sequences: int) -> _Made:
    made = _Made([])
    length = seq_len - len(encoder.prefix)
    end = [] if encoder.eos_id is None else [encoder.eos_id]
    waiting: list[int] = []
    for document in encoder.documents(corpus):
        made.documents += 1
        # One more than needed, since a token may be dropped below.
        body = encoder.body(document, (sequences - len(made.rows)) * length - len(waiting) + 1)
        made.total += len(body)
        if not body:
            continue
        waiting += body + end
        start = 0
        while len(made.rows) < sequences:
            # Where BOS is also what ends a document, or stands in the text, it must not come twice.
            while (encoder.prefix[-1:] + waiting[start : start + 2])[:2] == [encoder.bos_id] * 2:
                start += 1
            if len(waiting) - start < length:
                break
            made.add(encoder.prefix + waiting[start : start + length])
            start += length
        del waiting[:start]
        if len(made.rows) == sequences:
            break
    made.longest = len(encoder.prefix) + len(waiting)
    return made


def _nothing(corpus: Corpus, made: _Made, seq_len: int, pack: bool) -> InputError:
    if made.documents == 0:
        return InputError(f"The text '{corpus.name}' is empty; expected at least one document that is not blank.")
    have = "joined they have" if pack else "the longest has"
    advice = [f"a seq_len (--seq-len) of {made.longest} or less"] if made.longest >= 2 else []
    if not pack and made.total >= seq_len:
        advice.append("pack (--pack) to join documents")
    return InputError(
        f"No sequence of {seq_len} tokens in '{corpus.name}' ({made.documents} documents; {have} {made.longest} "
        f"tokens). Use {', or '.join([*advice, 'a longer text'])}."
    )
