"""From documents to token ids (sequence, token), and from a file of ids; how they were made travels with them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikesink.data.corpus import Corpus
from spikesink.errors import InputError

BOS_POLICIES = ("auto", "always", "never")
MAX_PROMPT_TOKENS = 4096


@dataclass(frozen=True)
class Tokens:
    """Token ids, int64 of shape (sequence, token), and the conditions they were made under."""

    ids: np.ndarray
    source: str = "ids"
    source_sha256: str | None = None
    bos: str = "as given"
    bos_added: bool | None = None
    """Whether every sequence begins with the tokenizer's BOS; None where ids were given."""
    packed: bool = False
    chat_template: bool = False
    skipped_short: int = 0
    documents: int = 0

    @classmethod
    def from_ids(cls, ids: np.ndarray, source: str = "ids", source_sha256: str | None = None) -> "Tokens":
        """Ids evaluated exactly as given. Raises InputError unless they are integers of shape (sequence, token)."""
        if ids.dtype.kind not in "iu":
            raise InputError(f"Token ids have type {ids.dtype}; expected integers.")
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
            raise InputError(
                f"Token ids have shape {ids.shape}; expected (sequences, seq_len) with seq_len at least 2."
            )
        return cls(ids=ids.astype(np.int64), source=source, source_sha256=source_sha256)

    def provenance(self) -> dict[str, Any]:
        """What a record says about its tokens."""
        return {
            "source": self.source,
            "source_sha256": self.source_sha256,
            "ids_sha256": hashlib.sha256(np.ascontiguousarray(self.ids).tobytes()).hexdigest(),
            "sequences": int(self.ids.shape[0]),
            "seq_len": int(self.ids.shape[1]),
            "bos": self.bos,
            "bos_added": self.bos_added,
            "packed": self.packed,
            "chat_template": self.chat_template,
            "skipped_short": self.skipped_short,
            "documents": self.documents,
        }


def load_token_ids(path: Path) -> Tokens:
    """The ids of an .npy file, an integer array (sequences, seq_len). Raises InputError."""
    try:
        # Mapped, not read: a header that lies about its size then costs no memory.
        ids = np.load(path, allow_pickle=False, mmap_mode="r")
    except OSError as error:
        raise InputError(f"The token file '{path}' cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, SyntaxError, MemoryError, OverflowError, RecursionError) as error:
        raise InputError(f"'{path}' is no .npy array of integers ({error}); write it with numpy.save.") from error
    if not isinstance(ids, np.ndarray):
        raise InputError(f"'{path}' holds {type(ids).__name__}, not one array; write it with numpy.save.")
    try:
        return Tokens.from_ids(np.asarray(ids), path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    except InputError as error:
        raise InputError(f"'{path}': {error}") from None


def check_ids(tokens: Tokens, vocab_size: int, max_positions: int | None) -> None:
    """Refuse ids outside the vocabulary and sequences longer than the model's positions."""
    low, high = int(tokens.ids.min()), int(tokens.ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise InputError(f"Token id {wrong} is outside the model's vocabulary of {vocab_size} (0 to {vocab_size - 1}).")
    if max_positions is not None and tokens.ids.shape[1] > max_positions:
        raise InputError(f"Sequences of {tokens.ids.shape[1]} tokens are beyond the model's {max_positions} positions.")


def tokenise(
    corpus: Corpus,
    tokenizer: Any,
    *,
    seq_len: int,
    sequences: int,
    bos: str = "auto",
    pack: bool = False,
    chat_template: bool = False,
) -> Tokens:
    """The first `seq_len` tokens of each document until there are `sequences`; shorter documents are skipped.

    `bos`: auto = what the tokenizer does by itself, always = exactly one BOS first, never = none. `pack` joins
    documents (end-of-sequence between them where the tokenizer has one) and cuts the stream instead; with a BOS, each
    sequence then begins with one. A prompt is one sequence of its own length. Raises InputError.
    """
    encode = _Encoder(tokenizer, bos, chat_template)
    if corpus.kind == "prompt":
        ids = encode(next(corpus.documents()))[:MAX_PROMPT_TOKENS]
        if len(ids) < 2:
            raise InputError(f"The prompt has {len(ids)} token; expected at least 2.")
        return _tokens([ids], corpus, encode, pack=False, skipped=0, documents=1)
    if seq_len < 2:
        raise InputError(f"seq-len is {seq_len}; expected at least 2.")
    made = _packed if pack else _cut
    rows, skipped, documents, longest = made(corpus, encode, seq_len, sequences)
    if not rows:
        if documents == 0:
            raise InputError(f"The text '{corpus.name}' is empty; expected documents.")
        raise InputError(
            f"No sequence of {seq_len} tokens in '{corpus.name}': {documents} documents, the longest has {longest} "
            f"tokens. Use --seq-len {max(2, longest)} or less{'' if pack else ', or --pack to join documents'}."
        )
    return _tokens(rows, corpus, encode, pack=pack, skipped=skipped, documents=documents)


class _Encoder:
    """Text to ids under one BOS policy; never a doubled BOS, never a trailing EOS."""

    def __init__(self, tokenizer: Any, bos: str, chat_template: bool) -> None:
        if bos not in BOS_POLICIES:
            raise InputError(f"Unknown BOS policy '{bos}'; expected one of {', '.join(BOS_POLICIES)}.")
        if bos == "always" and tokenizer.bos_token_id is None:
            raise InputError("--bos always was asked for, but the tokenizer has no BOS token; use --bos auto or never.")
        if chat_template and not tokenizer.chat_template:
            raise InputError("--chat-template was asked for, but the tokenizer has no chat template.")
        self.tokenizer, self.bos, self.chat_template = tokenizer, bos, chat_template
        self.bos_id, self.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id

    def __call__(self, document: str) -> list[int]:
        if self.chat_template:
            messages = [{"role": "user", "content": document}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            # The template writes its own special tokens, a BOS among them if it wants one.
            ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        else:
            ids = list(self.tokenizer(document, add_special_tokens=self.bos == "auto").input_ids)
            if self.bos == "auto" and len(ids) > 1 and ids[-1] == self.eos_id:
                ids.pop()
        if self.bos != "auto":
            while ids and self.bos_id is not None and ids[0] == self.bos_id:
                ids.pop(0)
        if self.bos == "always":
            ids.insert(0, self.bos_id)
        return ids

    @property
    def adds_bos(self) -> bool:
        return self.bos_id is not None and self("a")[:1] == [self.bos_id]


def _cut(corpus: Corpus, encode: _Encoder, seq_len: int, sequences: int) -> tuple[list[list[int]], int, int, int]:
    rows: list[list[int]] = []
    skipped = documents = longest = 0
    for document in corpus.documents():
        documents += 1
        # Only the beginning counts, so a long document is encoded whole only if its beginning is not enough.
        ids = encode(document[: 64 * seq_len])
        if len(ids) < seq_len < len(document) // 64:
            ids = encode(document)
        longest = max(longest, len(ids))
        if len(ids) < seq_len:
            skipped += 1
            continue
        rows.append(ids[:seq_len])
        if len(rows) == sequences:
            break
    return rows, skipped, documents, longest


def _packed(corpus: Corpus, encode: _Encoder, seq_len: int, sequences: int) -> tuple[list[list[int]], int, int, int]:
    first = [encode.bos_id] if encode.adds_bos else []
    rows: list[list[int]] = []
    documents = 0
    waiting: list[int] = []

    def stream() -> Iterator[list[int]]:
        for document in corpus.documents():
            ids = encode(document)
            yield ids[len(first) :] + ([encode.eos_id] if encode.eos_id is not None else [])

    length = seq_len - len(first)
    for ids in stream():
        documents += 1
        waiting += ids
        while len(waiting) >= length and len(rows) < sequences:
            rows.append(first + waiting[:length])
            waiting = waiting[length:]
        if len(rows) == sequences:
            break
    return rows, 0, documents, len(waiting) + len(first)


def _tokens(
    rows: list[list[int]], corpus: Corpus, encode: _Encoder, *, pack: bool, skipped: int, documents: int
) -> Tokens:
    ids = np.array(rows, dtype=np.int64)
    return Tokens(
        ids=ids,
        source=corpus.name,
        source_sha256=corpus.sha256,
        bos=encode.bos,
        bos_added=encode.bos_id is not None and bool((ids[:, 0] == encode.bos_id).all()),
        packed=pack,
        chat_template=encode.chat_template,
        skipped_short=skipped,
        documents=documents,
    )
