"""Documents in files: lines of text, rows of JSON, CSV and parquet, packed or not, each with its line in every error.

Text is decoded strictly, as UTF-8 or, where a file begins with its mark, as UTF-16.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from spikesink.atomic import file_sha256
from spikesink.errors import InputError, short

MAX_LINE_BYTES = 64 * 2**20
"""A longer line of a .txt or .jsonl is refused, so that a file without line ends cannot fill the memory."""
MAX_JSON_BYTES = 2**30
"""A .json is one value, read whole."""
PARQUET_ROWS = 64
"""Rows decoded at a time."""
FIELD = "text"
"""Where the text of a row is, unless the user says otherwise."""
CONVERSATIONS = ("messages", "conversations")
"""Where chat data has its conversations, where a row has no text: as OpenAI's format has it, and ShareGPT's."""
TOOLS, SYSTEM = "tools", "system"
"""Where a row with a conversation has the tools that its template tells the model about, and a message to the model
that goes before the others, as ShareGPT's format has it."""
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
"""ShareGPT's names of roles; others are as they are."""
SHAREGPT = {"from": "role", "value": "content"}
"""Its names of what a message has."""


@dataclass(frozen=True)
class Conversation:
    """What a chat template is given: messages, each with its role, and the tools that may be called."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


Document = str | Conversation


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


def _opened(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if it is packed. Raises InputError for one that cannot be read."""
    kind = path.suffix.lower()
    try:
        if kind == ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        if kind == ".zst":
            import pyarrow

            return pyarrow.input_stream(str(path), compression="zstd")
        return path.open("rb")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(Line number from 1, line without its end); read as bytes, so that an error can name the line."""
    try:
        with _opened(path) as file:
            start = file.read(4)
            parts = chain([start], iter(lambda: file.read(io.DEFAULT_BUFFER_SIZE), b""))
            whole = io.BufferedReader(_Parts(_recoded(parts, path) if _is_utf16(start) else parts))
            for number, line in enumerate(iter(lambda: whole.readline(MAX_LINE_BYTES + 1), b""), start=1):
                yield number, _decoded(line, number, path)
    # A packed file may be cut or damaged: gzip and zlib have exceptions of their own.
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"'{path}' cannot be read: {reason}; truncated or corrupt?") from error


class _Parts(io.RawIOBase):
    """A stream of parts that come one after the other; empty ones do not end it."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._waiting = filter(None, parts), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        waiting = self._waiting or next(self._parts, b"")
        part, self._waiting = waiting[: len(buffer)], waiting[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _is_utf16(start: bytes) -> bool:
    """Whether the file begins with the mark of UTF-16 (which that of UTF-32 begins with, too)."""
    utf32 = start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    return start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and not utf32


def _recoded(parts: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The parts of a text in UTF-16 as UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-16")("strict")
    try:
        for part in parts:
            yield decoder.decode(part).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise InputError(f"'{path}' is not valid UTF-16 ({short(error)}); convert it to UTF-8.") from error


def _decoded(line: bytes, number: int, path: Path) -> str:
    if len(line) > MAX_LINE_BYTES:
        limit = MAX_LINE_BYTES // 2**20
        raise InputError(f"'{path}', line {number}, is longer than {limit} MiB; break it up into one document a line.")
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    if b"\0" in line:
        raise InputError(
            f"'{path}', line {number}, holds a NUL byte, so this is no UTF-8 text (is it binary, or UTF-16 without a "
            "mark?); convert it to UTF-8."
        )
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x} at byte {error.start + 1}"
        raise InputError(f"'{path}', line {number}, is not UTF-8 text ({byte}); convert it to UTF-8.") from error


def _text_lines(path: Path, _field: str | None) -> Iterator[str]:
    for _, line in _lines(path):
        yield line


def _json_lines(path: Path, field: str | None) -> Iterator[Document]:
    for number, line in _lines(path):
        if line.strip():
            where = f"'{path}', line {number},"
            yield document_of(_parsed(line, where, "one object a line"), field, where)


def _json_rows(path: Path, field: str | None) -> Iterator[Document]:
    """Of a list of objects, or of the one list in an object (`{"data": [...]}`)."""
    parts: list[str] = []
    size = 0
    for _, line in _lines(path):
        # With its end: a file of nothing but line ends would otherwise have no size.
        size += len(line) + 1
        if size > MAX_JSON_BYTES:
            raise InputError(
                f"'{path}' is larger than {MAX_JSON_BYTES // 2**20} MiB; write it as .jsonl, a row a line."
            )
        parts.append(line)
    where = f"'{path}'"
    content = _parsed("\n".join(parts), where, "a list of objects")
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 and not _holds(content, field) else [content]
    if not isinstance(content, list):
        raise InputError(
            f"{where} is a {type(content).__name__}; expected a list of objects with a field '{field or FIELD}'."
        )
    for number, row in enumerate(content, start=1):
        yield document_of(row, field, f"{where}, item {number},")


def _parsed(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{where} is JSON nested too deeply; expected an object with a field 'text'.") from error
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}. Expected {expected}.") from error


def _csv_rows(path: Path, field: str | None) -> Iterator[Document]:
    """Rows below a line of column names; a quoted value may hold line ends."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader((line + "\n" for _, line in _lines(path)), strict=True)
    rows = (row for row in reader if row)
    try:
        names = next(rows, [])
        wanted = _column(names, field, path)
        for row in rows:
            where = f"'{path}', line {reader.line_num},"
            if len(row) != len(names):
                raise InputError(
                    f"{where} has {len(row)} value(s); expected {len(names)}, one a column. Quote values that hold "
                    'commas or line ends: "one, two".'
                )
            yield document_of({wanted: row[names.index(wanted)]}, wanted, where)
    except csv.Error as error:
        raise InputError(f"'{path}', line {reader.line_num}, is not valid CSV: {short(error)}.") from error


def _parquet_rows(path: Path, field: str | None) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = _column(names, field, path)
            read = [name for name in dict.fromkeys((wanted, TOOLS, SYSTEM)) if name in names]
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=read):
                for row in batch.to_pylist():
                    number += 1
                    yield document_of(unpadded(row), wanted, f"'{path}', row {number},")
    # A corrupt file shows as any of these: pyarrow's own, bytes that are no UTF-8, sizes beyond the memory.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise InputError(f"'{path}' cannot be read as parquet, truncated or corrupt? ({short(error)})") from error


READERS: dict[str, tuple[Callable[[Path, str | None], Iterator[Document]], str]] = {
    ".txt": (_text_lines, "a line of a text file"),
    ".jsonl": (_json_lines, "the field `{field}` of a JSON line"),
    ".json": (_json_rows, "the field `{field}` of an item of a JSON list"),
    ".csv": (_csv_rows, "the column `{field}` of a CSV row"),
    ".parquet": (_parquet_rows, "the column `{field}` of a parquet row"),
}
"""By the end of a file's name."""
PACKED = (".gz", ".zst")


def _column(names: Sequence[str], field: str | None, path: Path) -> str:
    """The column with the text or the conversation. Raises InputError where there is none, or more than one."""
    wanted = next((name for name in _candidates(field) if name in names), None)
    if wanted is None:
        listed = ", ".join(names)[:200] or "none"
        raise InputError(
            f"'{path}' has no column '{field or FIELD}'; its columns are: {listed}. Give the one with the text: "
            "--field NAME."
        )
    if names.count(wanted) > 1:
        raise InputError(
            f"'{path}' has {names.count(wanted)} columns '{wanted}'; expected one. Rename those that are not meant."
        )
    return wanted


def _candidates(field: str | None) -> tuple[str, ...]:
    return (FIELD, *CONVERSATIONS) if field is None else (field,)


def _holds(row: dict, field: str | None) -> bool:
    return any(name in row for name in _candidates(field))


def unpadded(row: Any) -> dict[str, Any]:
    """A row of an Arrow table, within whose values every object has the keys of all others, null where it has none."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def document_of(row: object, field: str | None, where: str) -> Document:
    """The text or conversation of a row. Raises InputError where it has none."""
    if not isinstance(row, dict) or not _holds(row, field):
        has = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
        raise InputError(
            f"{where} has no field '{field or FIELD}' (got: {has[:200] or 'nothing'}); expected a string under it. "
            "Another field: --field NAME."
        )
    name = next(each for each in _candidates(field) if each in row)
    value = row[name]
    if isinstance(value, list):
        messages = [
            _message(message, f"{where} message {number} of '{name}'") for number, message in enumerate(value, start=1)
        ]
        return Conversation(_behind_system(row.get(SYSTEM), messages, where), _tools(row.get(TOOLS), where))
    if not isinstance(value, str):
        raise InputError(f"{where} has a field '{name}' of type {type(value).__name__}; expected a string.")
    check_unicode(value, where)
    return value


def _message(message: object, where: str) -> dict[str, Any]:
    """The message whole, with ShareGPT's `from` and `value` as role and content; what calls a tool may have no content.

    Without what is null, as transformers reads a message: a parquet row has every key that any row has.
    """
    if not isinstance(message, dict):
        raise InputError(f"{where} is a {type(message).__name__}; expected an object with role and content.")
    said = {key: value for key, value in message.items() if value is not None}
    for theirs, ours in SHAREGPT.items():
        if theirs in said and ours not in said:
            said[ours] = said.pop(theirs)
    role, content = said.get("role"), said.get("content", "" if said.get("tool_calls") else None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise InputError(
            f"{where} has no role and content (got: {', '.join(map(str, message))[:200]}); expected strings."
        )
    check_unicode(content, where)
    return {**said, "role": ROLES.get(role, role)}


def _behind_system(content: object, messages: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The messages behind a row's system prompt, unless they have one. Raises InputError for two that differ."""
    if not content:
        return messages
    system = _message({"role": SYSTEM, "content": content}, f"{where} field '{SYSTEM}'")
    first = messages[0] if messages and messages[0]["role"] == SYSTEM else None
    if first is not None and first["content"] != content:
        raise InputError(f"{where} has another system prompt in field '{SYSTEM}' than in its messages; leave one out.")
    return messages if first is not None else [system, *messages]


def _tools(tools: object, where: str) -> list[Any] | None:
    """The tools of a row, which may be JSON in a string, as each of them may. Raises InputError for anything else."""
    if isinstance(tools, str):
        tools = _parsed(tools, f"{where} field '{TOOLS}'", "a list of objects") if tools.strip() else None
    if isinstance(tools, list):
        named = f"{where} field '{TOOLS}'"
        tools = [_parsed(tool, named, "an object") if isinstance(tool, str) else tool for tool in tools]
    tools = tools or None
    if tools is not None and not isinstance(tools, list):
        raise InputError(f"{where} has '{TOOLS}' of type {type(tools).__name__}; expected a list of objects.")
    return tools


def check_unicode(text: str, where: str) -> None:
    """JSON's \\ud800 and a shell's stray bytes make strings that no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise InputError(
            f"{where} holds a lone surrogate ({code} at character {error.start + 1}); expected valid Unicode. "
            "Remove it or write the text again as UTF-8."
        ) from error
