"""Where documents come from: a file, a hub data set, one prompt, or the English that every Python carries.

A corpus is a stream of documents that can be read again and again in constant memory, with a name and a hash.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spikesink.errors import InputError

MAX_DOCUMENT_CHARACTERS = 10_000_000
"""A longer document is cut here: no measured sequence needs more."""


@dataclass(frozen=True)
class Corpus:
    """Documents with their origin; `read` starts the stream anew."""

    name: str
    kind: str
    sha256: str | None
    """Over the bytes of the file or of the text; None for a streamed hub data set, whose revision is in the name."""
    read: Callable[[], Iterator[str]]

    def documents(self) -> Iterator[str]:
        """Every document that is not blank."""
        for document in self.read():
            if document.strip():
                yield document[:MAX_DOCUMENT_CHARACTERS]


def read_corpus(path: Path) -> Corpus:
    """The documents of a .txt (one a line), .jsonl or .parquet file (the field `text` of a row). Raises InputError."""
    readers = {".txt": _lines, ".jsonl": _json_lines, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise InputError(f"'{path}' ends in '{path.suffix}'; expected one of {', '.join(readers)}.")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"The text file '{path}' cannot be read: {error.strerror}.") from error
    reader = readers[path.suffix.lower()]
    return Corpus(name=path.name, kind=path.suffix[1:].lower(), sha256=digest, read=lambda: reader(path))


def prompt_corpus(text: str) -> Corpus:
    """One text as a corpus of one document."""
    if not text.strip():
        raise InputError("The prompt is empty; expected some text.")
    return Corpus("prompt", "prompt", hashlib.sha256(text.encode()).hexdigest(), lambda: iter([text]))


def default_corpus() -> Corpus:
    """English that every Python carries: the language reference in `pydoc_data.topics`, a paragraph a document."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))

    def paragraphs() -> Iterator[str]:
        for paragraph in text.split("\n\n"):
            yield " ".join(paragraph.split())

    return Corpus("pydoc_data.topics", "python", hashlib.sha256(text.encode()).hexdigest(), paragraphs)


def hub_corpus(name: str) -> Corpus:
    """A hub data set, streamed: `NAME`, `NAME:CONFIG` or `NAME:CONFIG:SPLIT` (default split `train`)."""
    parts = name.split(":")
    if not parts[0] or len(parts) > 3:
        raise InputError(f"'{name}' is no data set; expected NAME, NAME:CONFIG or NAME:CONFIG:SPLIT.")
    config = parts[1] or None if len(parts) > 1 else None
    split = parts[2] if len(parts) > 2 else "train"

    def rows() -> Iterator[str]:
        from datasets import load_dataset

        try:
            for row in load_dataset(parts[0], config, split=split, streaming=True):
                yield _text_field(row, f"data set '{name}'")
        except InputError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise InputError(
                f"The data set '{name}' cannot be read from the hub ({type(error).__name__}: {text}). Check the name "
                "and the network, or give a local file: --text FILE."
            ) from error

    return Corpus(f"hub:{name}", "hub", None, rows)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.strip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from error


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"'{path}', line {number}, is not valid JSON: {error}.") from error
        yield _text_field(row, f"'{path}', line {number},")


def _parquet_rows(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if "text" not in names:
            raise InputError(f"'{path}' has no column 'text'; its columns are {', '.join(names) or 'none'}.")
        for batch in file.iter_batches(batch_size=256, columns=["text"]):
            for value in batch.column(0).to_pylist():
                yield _text_field({"text": value}, f"A row of '{path}'")
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"'{path}' cannot be read as parquet ({error}); it is truncated or corrupt.") from error


def _text_field(row: object, where: str) -> str:
    if not isinstance(row, dict) or "text" not in row:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where} has no field 'text' (got: {found[:200]}).")
    if not isinstance(row["text"], str):
        raise InputError(f"{where} has a field 'text' of type {type(row['text']).__name__}; expected a string.")
    return row["text"]
