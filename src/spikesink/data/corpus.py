"""Where documents come from: a file, a hub data set, one prompt, or the English that every Python carries.

A corpus is a stream of documents that can be read again and again in constant memory, with a name and a hash. Text is
decoded as UTF-8, strictly: a wrong byte is an error that names its line, never a replacement character.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikesink.atomic import file_sha256
from spikesink.errors import InputError

MAX_LINE_BYTES = 64 * 2**20
"""A longer line of a .txt or .jsonl is refused, so that a file without line ends cannot fill the memory."""
PARQUET_ROWS = 64
"""Rows decoded at a time."""
GENERIC_BUILDERS = ("arrow", "audiofolder", "csv", "imagefolder", "json", "pandas", "parquet", "text", "webdataset")
"""Names that `datasets` resolves to whatever files lie in the current folder instead of asking the hub."""


@dataclass(frozen=True)
class Corpus:
    """Documents with their origin; `read` starts the stream anew."""

    name: str
    kind: str
    """txt, jsonl, parquet, hub, prompt or python."""
    sha256: str | None
    """Over the bytes of the file or of the text; None for a streamed hub data set, whose description has its revision.
    """
    description: str
    """What a document is here."""
    read: Callable[[], Iterator[str]]

    def documents(self) -> Iterator[str]:
        """Every document that is not blank. Raises InputError where the source turns out not to be readable."""
        for document in self.read():
            if document.strip():
                yield document


def read_corpus(path: Path) -> Corpus:
    """The documents of a .txt (one a line), .jsonl or .parquet file (the field `text` of a row). Raises InputError."""
    kinds = {
        ".txt": (_text_lines, "a line of a text file"),
        ".jsonl": (_json_lines, "the field `text` of a JSON line"),
        ".parquet": (_parquet_rows, "the column `text` of a parquet row"),
    }
    check_file(path, "text file")
    suffix = path.suffix.lower()
    if suffix not in kinds:
        raise InputError(f"'{path}' ends in '{path.suffix}'; expected one of {', '.join(kinds)}. Rename or convert it.")
    reader, description = kinds[suffix]
    return Corpus(path.name, suffix[1:], checked_sha256(path), description, lambda: reader(path))


def prompt_corpus(text: str) -> Corpus:
    """One text as a corpus of one document. Raises InputError for a blank text or one that is not valid Unicode."""
    if not text.strip():
        raise InputError("The prompt is empty; expected some text.")
    _check_unicode(text, "The prompt")
    return Corpus("prompt", "prompt", _text_sha256(text), "one text", lambda: iter([text]))


def default_corpus() -> Corpus:
    """English that every Python carries: the language reference in `pydoc_data.topics`, a paragraph a document.

    Its text differs between Python versions, hence the hash. About 380 of its paragraphs reach 64 tokens.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(f"This Python has no pydoc_data ({error}); give a text: --text FILE.") from error

    text = "\n\n".join(topics[name] for name in sorted(topics))

    def paragraphs() -> Iterator[str]:
        # Topics share passages; a paragraph that counted twice would make intervals look narrower than they are.
        yield from dict.fromkeys(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))

    description = "a paragraph of the Python language reference, white space collapsed"
    return Corpus("pydoc_data.topics", "python", _text_sha256(text), description, paragraphs)


def hub_corpus(name: str) -> Corpus:
    """A hub data set, streamed: `NAME[@REVISION][:CONFIG[:SPLIT]]`, with split `train` unless given.

    The hub is asked at once, for the revision that the description carries. Raises InputError when it cannot be
    reached, has no such data set, or (while reading) a row has no text.
    """
    where, *rest = name.split(":")
    config, split = [*rest, "", ""][:2]
    repository, _, revision = where.partition("@")
    if not repository.strip() or len(rest) > 2:
        raise InputError(f"'{name}' is no data set; expected NAME[@REVISION][:CONFIG[:SPLIT]].")
    if repository in GENERIC_BUILDERS:
        raise InputError(f"'{repository}' is a file format, not a data set of the hub; for a file use --text FILE.")
    split = split or "train"
    try:
        from datasets import load_dataset_builder

        builder = load_dataset_builder(repository, config or None, revision=revision or None)
    except Exception as error:
        raise _hub_error(name, error) from error

    def rows() -> Iterator[str]:
        try:
            for number, row in enumerate(_stream(builder, split), start=1):
                yield _text_field(row, f"Data set '{name}', row {number},")
        except InputError:
            raise
        except Exception as error:
            raise _hub_error(name, error) from error

    details = f"config {builder.config.name}, split {split}, revision {builder.hash or 'unknown'}"
    return Corpus(f"hub:{name}", "hub", None, f"the field `text` of a row, in order; {details}", rows)


def check_file(path: Path, what: str) -> None:
    """Raise InputError unless `path` is a regular file; a pipe or a device would block or never end."""
    try:
        if path.is_dir():
            raise InputError(f"'{path}' is a folder; expected a {what}.")
        if path.exists() and not path.is_file():
            raise InputError(f"'{path}' is not a regular file; save its content as a {what} first.")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"The {what} '{path}' cannot be read: {reason}. Check the path.") from error


def checked_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises InputError when it cannot be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(Line number from 1, line without its end); read as bytes, so that an error can name the line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                yield number, _decoded(line, number, path)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def _decoded(line: bytes, number: int, path: Path) -> str:
    if len(line) > MAX_LINE_BYTES:
        limit = MAX_LINE_BYTES // 2**20
        raise InputError(f"'{path}', line {number}, is longer than {limit} MiB; break it up into one document a line.")
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in line:
        raise InputError(
            f"'{path}', line {number}, holds a NUL byte, so this is no UTF-8 text (is it binary or UTF-16?); "
            "convert it to UTF-8."
        )
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x} at byte {error.start + 1}"
        raise InputError(f"'{path}', line {number}, is not UTF-8 text ({byte}); convert it to UTF-8.") from error


def _text_lines(path: Path) -> Iterator[str]:
    for _, line in _lines(path):
        yield line


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"'{path}', line {number},"
        try:
            row = json.loads(line)
        except RecursionError as error:
            raise InputError(f"{where} is JSON nested too deeply; expected an object with a field 'text'.") from error
        except ValueError as error:
            raise InputError(f"{where} is not valid JSON: {error}. Expected one object a line.") from error
        yield _text_field(row, where)


def _parquet_rows(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                listed = ", ".join(names)[:200] or "none"
                raise InputError(f"'{path}' has no column 'text'; its columns are: {listed}. Rename the one with text.")
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=["text"]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _text_field({"text": value}, f"'{path}', row {number},")
    # A corrupt file shows as any of these: pyarrow's own, bytes that are no UTF-8, sizes beyond the memory.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"'{path}' cannot be read as parquet, truncated or corrupt? ({_short(error)})") from error


def _stream(builder: Any, split: str) -> Iterator[Any]:
    yield from builder.as_streaming_dataset(split=split)


def _text_field(row: object, where: str) -> str:
    if not isinstance(row, dict) or "text" not in row:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
        raise InputError(f"{where} has no field 'text' (got: {found[:200] or 'nothing'}); expected a string under it.")
    text = row["text"]
    if not isinstance(text, str):
        raise InputError(f"{where} has a field 'text' of type {type(text).__name__}; expected a string.")
    _check_unicode(text, where)
    return text


def _check_unicode(text: str, where: str) -> None:
    """JSON's \\ud800 and a shell's stray bytes make strings that no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise InputError(
            f"{where} holds a lone surrogate ({code} at character {error.start + 1}); expected valid Unicode. "
            "Remove it or write the text again as UTF-8."
        ) from error


def _hub_error(name: str, error: Exception) -> InputError:
    return InputError(
        f"The data set '{name}' cannot be read from the hub ({type(error).__name__}: {_short(error)}). Check the name "
        "(NAME[@REVISION][:CONFIG[:SPLIT]]) and the network, or give a local file: --text FILE."
    )


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
