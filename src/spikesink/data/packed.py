"""Token files: a corpus tokenised once into two memory-mapped streams, training and held-out, documents joined.

Sequences are cut from a stream by index: sample i depends on (seed, i) alone, whoever asks and in whatever order, so
the position in the data is the number of samples seen.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikesink.atomic import make_folder
from spikesink.data.corpus import Corpus
from spikesink.data.encode import Encoder
from spikesink.data.files import Document
from spikesink.data.restarts import restart_places
from spikesink.errors import InputError, OutputError

HELD_OUT_SHARE = 32
"""One document in so many is held out, chosen by a hash of its text: the same text is always on the same side."""
META = "meta.json"
STREAMS = {"train": "tokens", "held_out": "held_out_tokens"}
"""Name of each stream's file, and of its length in the metadata."""
BATCH_DOCUMENTS = 64


@dataclass(frozen=True)
class TokenFile:
    """The streams of one corpus under one tokenizer; `train` and `held_out` are memory-mapped, (token,)."""

    folder: Path
    meta: dict[str, Any]

    @property
    def train(self) -> np.ndarray:
        return self._stream("train")

    @property
    def held_out(self) -> np.ndarray:
        return self._stream("held_out")

    def _stream(self, name: str) -> np.ndarray:
        path, dtype = self.folder / f"{name}.bin", np.dtype(self.meta["dtype"])
        # An empty file cannot be mapped.
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def write_token_file(
    corpus: Corpus,
    tokenizer: Any,
    folder: Path,
    *,
    max_tokens: int | None = None,
    chat: Encoder | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> TokenFile:
    """Tokenise a corpus into `folder`, or read it if it is there whole. Raises InputError and OutputError.

    `max_tokens` ends the training stream early, for corpora without an end. chat: wraps documents as a user's messages.
    """
    try:
        make_folder(folder, lambda empty: _fill(corpus, tokenizer, empty, max_tokens, chat, progress), _is_whole)
    except OSError as error:
        raise OutputError(
            f"The token file '{folder}' cannot be written: {error.strerror}. Free some space, or set SPIKESINK_CACHE "
            "to a folder that has it."
        ) from error
    return TokenFile(folder, json.loads((folder / META).read_text(encoding="utf-8")))


def _is_whole(folder: Path) -> bool:
    """Whether both streams have the length that was written."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        width = np.dtype(meta["dtype"]).itemsize
        return all((folder / f"{name}.bin").stat().st_size == width * meta[count] for name, count in STREAMS.items())
    # Whatever else may stand in its place.
    except Exception:
        return False


def _fill(
    corpus: Corpus,
    tokenizer: Any,
    folder: Path,
    max_tokens: int | None,
    chat: Encoder | None,
    progress: Callable[[str, int, int], None],
) -> None:
    dtype = np.dtype("<u2") if len(tokenizer) <= 2**16 else np.dtype("<u4")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    counts = {"train": 0, "held_out": 0}
    documents = 0
    with (folder / "train.bin").open("wb") as train, (folder / "held_out.bin").open("wb") as held_out:
        files = {"train": train, "held_out": held_out}
        for batch in _batches(chat.documents(corpus) if chat else corpus.documents()):
            if chat:
                encoded = [chat.body(document) for document in batch]
            else:
                encoded = tokenizer(batch, add_special_tokens=False, verbose=False).input_ids
            for text, ids in zip(batch, encoded, strict=True):
                split = "held_out" if is_held_out(text) else "train"
                files[split].write(np.array([*ids, *end], dtype=dtype).tobytes())
                counts[split] += len(ids) + len(end)
                documents += 1
            progress("tokenise", counts["train"], max_tokens or max(counts["train"], 1))
            if max_tokens is not None and counts["train"] >= max_tokens:
                break
    meta = {
        "source": corpus.name,
        "source_sha256": corpus.sha256,
        "source_description": corpus.description,
        "documents": documents,
        "tokens": counts["train"],
        "held_out_tokens": counts["held_out"],
        "held_out": f"documents whose SHA-256 is 0 modulo {HELD_OUT_SHARE}",
        "dtype": dtype.str,
        "vocab_size": len(tokenizer),
    }
    (folder / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch


def is_held_out(document: Document) -> bool:
    """Which side of the split a document is on; a conversation by its messages, in whatever order their keys are."""
    text = document if isinstance(document, str) else json.dumps([*map(_in_order, document.messages)], default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT_SHARE == 0


def _in_order(message: dict[str, Any]) -> dict[str, Any]:
    return {key: message[key] for key in ("role", "content", *sorted(message)) if key in message}


class PackedSampler:
    """Sequences cut from a stream; every pass over it goes through its pieces in another order.

    A piece that begins with BOS, as where BOS is also what ends a document, is cut from behind it: never a doubled BOS.
    The others stay where they are, so such a sequence ends on what the next piece begins with.
    """

    def __init__(self, stream: np.ndarray, seq_len: int, *, bos_id: int | None, seed: int, restarts: int = 0) -> None:
        """bos_id: put first in every sequence, None for no BOS. restarts: places where it stands again, at random, the
        text going on behind it. Raises InputError for a stream that is too short."""
        self.stream, self.seq_len, self.bos_id, self.seed, self.restarts = stream, seq_len, bos_id, seed, restarts
        self.piece = seq_len - (bos_id is not None) - restarts
        self.pieces = len(stream) // self.piece
        while self.pieces and self._start(self.pieces - 1) > len(stream) - self.piece:
            self.pieces -= 1
        if self.pieces < 1:
            raise InputError(
                f"{len(stream)} tokens make no sequence of {seq_len}; give a longer text or lower seq_len."
            )
        self._pass = -1
        self._order = np.empty(0, dtype=np.int64)

    def sample(self, index: int) -> np.ndarray:
        """Token ids of shape (seq_len,), int64."""
        number, place = divmod(index, self.pieces)
        if number != self._pass:
            self._order = np.random.default_rng([self.seed, number]).permutation(self.pieces)
            self._pass = number
        return self._piece(int(self._order[place]), index)

    def first(self, count: int) -> np.ndarray:
        """The first `count` sequences in the stream's own order, (count, seq_len); fewer where it ends."""
        return np.stack([self._piece(place, place) for place in range(min(count, self.pieces))])

    def _start(self, place: int) -> int:
        start = place * self.piece
        while start < len(self.stream) and self.stream[start] == self.bos_id:
            start += 1
        return start

    def _piece(self, place: int, index: int) -> np.ndarray:
        """The piece at this place with BOS; the index decides where BOS stands again."""
        start = self._start(place)
        piece = self.stream[start : start + self.piece].astype(np.int64)
        if self.bos_id is None:
            return piece
        # How many BOS stand before each token of the piece, so that it is inserted there.
        before = [0]
        if self.restarts:
            again = restart_places(np.random.default_rng([self.seed, index]), self.seq_len, self.restarts)
            before += [place - 1 - rank for rank, place in enumerate(sorted(again))]
        return np.insert(piece, before, self.bos_id)
