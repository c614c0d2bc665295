"""Where documents come from: a file, a hub data set, one prompt, or the English and the code that every Python carries.

A corpus is a stream of documents that can be read again and again in constant memory, with a name and a hash. A wrong
byte or a row without text is an error that names its line, never a replacement character.
"""

import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spikesink.data.files import (
    FIELD,
    PACKED,
    READERS,
    Document,
    check_file,
    check_unicode,
    checked_sha256,
    document_of,
    unpadded,
)
from spikesink.errors import InputError, short
from spikesink.reach import check_dataset_reachable

GENERIC_BUILDERS = ("arrow", "audiofolder", "csv", "imagefolder", "json", "pandas", "parquet", "text", "webdataset")
"""Names that `datasets` resolves to whatever files lie in the current folder instead of asking the hub."""


@dataclass(frozen=True)
class Corpus:
    """Documents with their origin; `read` starts the stream anew."""

    name: str
    kind: str
    """txt, jsonl, json, csv, parquet, dataset, hub, prompt, texts or python."""
    sha256: str | None
    """Over the bytes of the file or of the text; None for a streamed hub data set, whose description has its revision.
    """
    description: str
    """What a document is here."""
    read: Callable[[], Iterator[Document]]

    def documents(self) -> Iterator[str]:
        """Every document that is not blank.

        Raises InputError where the source turns out not to be readable, or to be conversations.
        """
        for document in self.texts_and_conversations():
            if not isinstance(document, str):
                raise InputError(
                    f"'{self.name}' holds conversations; expected plain text here. Give the field that holds it: "
                    "--field NAME."
                )
            yield document

    def is_chat(self) -> bool:
        """Whether it begins with a conversation. Raises InputError where it cannot be read."""
        return not isinstance(next(self.texts_and_conversations(), ""), str)

    def texts_and_conversations(self) -> Iterator[Document]:
        """The same, conversations included."""
        for document in self.read():
            if not isinstance(document, str) or document.strip():
                yield document


def read_corpus(path: Path | str, field: str | None = None) -> Corpus:
    """The documents of a .txt (one a line), .jsonl, .json, .csv or .parquet file, also in .gz or .zst, or of a folder
    that `datasets` saved.

    field: of a row, the one with the text; default `text`, else a conversation under `messages` or `conversations`.
    Raises InputError.
    """
    path = Path(path)
    if path.is_dir():
        return _saved_dataset(path, field)
    check_file(path, "text file")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in PACKED else None
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in READERS or (packed is not None and suffix == ".parquet"):
        raise InputError(
            f"'{path}' ends in '{path.suffix}'; expected one of {', '.join(READERS)}, or a text in "
            f"{' or '.join(PACKED)}. Rename or convert it."
        )
    if suffix == ".txt" and field is not None:
        raise InputError(f"'{path}' is plain text, which has no field '{field}'; leave --field out.")
    reader, description = READERS[suffix]
    described = description.format(field=field or FIELD)
    return Corpus(path.name, suffix[1:], checked_sha256(path), described, lambda: reader(path, field))


def as_corpus(documents: object) -> Corpus:
    """A corpus as it is, or a list of texts as one. Raises InputError for anything else."""
    if isinstance(documents, Corpus):
        return documents
    if not isinstance(documents, list | tuple) or not all(isinstance(text, str) for text in documents):
        raise InputError(
            f"Got documents of type {type(documents).__name__}; expected a list of texts, or a corpus: "
            "read_corpus(path), prompt_corpus(text)."
        )
    texts = list(documents)
    for number, text in enumerate(texts):
        check_unicode(text, f"Text {number} of the list")
    return Corpus("texts", "texts", _text_sha256("\0".join(texts)), "a text of a list", lambda: iter(texts))


def prompt_corpus(text: str) -> Corpus:
    """One text as a corpus of one document. Raises InputError for a blank text or one that is not valid Unicode."""
    if not text.strip():
        raise InputError("The prompt is empty; expected some text.")
    check_unicode(text, "The prompt")
    return Corpus("prompt", "prompt", _text_sha256(text), "one text", lambda: iter([text]))


def chosen_corpus(path: Path | str | None, dataset: str | None, field: str | None) -> Corpus:
    """The documents of a file, of a data set of the hub, or where neither is named the default. Raises InputError."""
    if path is not None:
        return read_corpus(path, field)
    return hub_corpus(dataset, field) if dataset is not None else default_corpus()


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


def hub_corpus(name: str, field: str | None = None) -> Corpus:
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
    check_dataset_reachable(name)
    try:
        from datasets import load_dataset_builder

        builder = load_dataset_builder(repository, config or None, revision=revision or None)
    except Exception as error:
        raise _hub_error(name, error) from error

    def rows() -> Iterator[Document]:
        try:
            for number, row in enumerate(builder.as_streaming_dataset(split=split), start=1):
                yield document_of(unpadded(row), field, f"Data set '{name}', row {number},")
        except InputError:
            raise
        except Exception as error:
            raise _hub_error(name, error) from error

    details = f"config {builder.config.name}, split {split}, revision {builder.hash or 'unknown'}"
    return Corpus(f"hub:{name}", "hub", None, f"the field `{field or FIELD}` of a row, in order; {details}", rows)


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _saved_dataset(path: Path, field: str | None) -> Corpus:
    """A data set that `save_to_disk` wrote. Raises InputError for another folder."""
    from datasets import Dataset, load_from_disk

    if not (path / "dataset_info.json").is_file() and not (path / "dataset_dict.json").is_file():
        raise InputError(
            f"'{path}' is a folder; expected a text file, or a folder that save_to_disk of datasets wrote. A folder of "
            "files: give one of them."
        )
    try:
        saved = load_from_disk(str(path))
    except Exception as error:
        raise InputError(f"'{path}' cannot be read as a data set ({short(error)}).") from error
    if not isinstance(saved, Dataset):
        raise InputError(
            f"'{path}' holds several splits; give one of them: {', '.join(str(path / str(name)) for name in saved)}."
        )
    digest = hashlib.sha256("".join(checked_sha256(file) for file in sorted(path.glob("*.arrow"))).encode()).hexdigest()

    def rows() -> Iterator[Document]:
        for number, row in enumerate(saved, start=1):
            yield document_of(unpadded(row), field, f"'{path}', row {number},")

    description = f"the field `{field or FIELD}` of a row of a saved data set"
    return Corpus(path.resolve().name, "dataset", digest, description, rows)


def _hub_error(name: str, error: Exception) -> InputError:
    return InputError(
        f"The data set '{name}' cannot be read from the hub ({type(error).__name__}: {short(error)}). Check the name "
        "(NAME[@REVISION][:CONFIG[:SPLIT]]) and the network, or give a local file: --text FILE."
    )


def python_source() -> Corpus:
    """A document a file, in the order of their paths; installed packages are left out. Its hash names the Python."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(path.parts)]
    digest = hashlib.sha256()
    for path in paths:
        text = _utf8(path)
        if text is not None:
            digest.update(str(path.relative_to(root)).encode() + b"\0" + text.encode() + b"\0")

    def documents() -> Iterator[str]:
        for path in paths:
            text = _utf8(path)
            if text is not None:
                yield text

    description = f"a .py file of the standard library of Python {sysconfig.get_python_version()}"
    return Corpus("python_source", "python", digest.hexdigest(), description, documents)


def _utf8(path: Path) -> str | None:
    """The file as text; None for the few of Python's own tests that are no UTF-8 on purpose."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
