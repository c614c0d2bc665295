"""Files of a record: written beside their place and renamed there, so that a record is whole or absent."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from spikesink.atomic import write_temporary
from spikesink.errors import OutputError, RecordError, short


def run_folder(path: Path, *files: str) -> Path:
    """The folder of a run, which may also be named by one of these files in it."""
    return path.parent if path.name in files and path.is_file() else path


def check_output(folder: Path, file: str, *, force: bool, option: str = "--out") -> None:
    """Refuse early what could not be written at the end: an existing record, a file in the way, no permission."""
    if (folder / file).exists() and not force:
        raise OutputError(
            f"'{folder}' already holds a record ({file}); replace it with --force (force=True), or "
            "give another folder (--out)."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"The output folder '{folder}' cannot be written: {error.strerror}. Choose another folder ({option})."
        ) from error


def write_files(folder: Path, contents: dict[str, bytes], *, force: bool) -> None:
    """Write all files, the last one last: a folder that has it has the others that belong to it. Raises OutputError.

    Every byte is on disk before the first rename, so a full disk leaves an earlier record as it was.
    """
    *_, last = contents
    check_output(folder, last, force=force)
    temporaries: dict[str, Path] = {}
    try:
        for name, content in contents.items():
            temporaries[name] = write_temporary(folder / name, content)
        if len(contents) > 1:
            (folder / last).unlink(missing_ok=True)
        for name, temporary in temporaries.items():
            os.replace(temporary, folder / name)
    except OSError as error:
        raise OutputError(
            f"The record could not be written to '{folder}': {error.strerror}. Nothing half-written is left."
        ) from error
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def read_files(folder: Path, file: str, arrays_file: str, command: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """JSON content and arrays of a record folder; raises RecordError for whatever is no record."""
    from safetensors.numpy import load_file

    content = read_json(folder / file, command)
    _check_file(folder / arrays_file, command)
    try:
        return content, load_file(folder / arrays_file)
    # safetensors has its own exception, and numpy lacks some of its types.
    except Exception as error:
        raise _unreadable(folder, error) from None


def read_json(path: Path, command: str) -> dict[str, Any]:
    """The JSON object in a file; raises RecordError for whatever is none."""
    _check_file(path, command)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path.parent, error) from None
    if not isinstance(content, dict):
        raise RecordError(f"'{path}' holds a {type(content).__name__}; expected a record, a JSON object.")
    return content


def _check_file(path: Path, command: str) -> None:
    """A pipe or a device in a record's place would block or never end."""
    try:
        there, regular = path.exists(), path.is_file()
    except (OSError, ValueError) as error:
        raise _unreadable(path.parent, error) from None
    if not there and path.parent.is_file():
        raise RecordError(f"'{path.parent}' is a file; expected the folder of a run, or its {path.name}.")
    if not there:
        raise RecordError(f"'{path.parent}' holds no record ({path.name} is missing); make one with {command} --out.")
    if not regular:
        raise RecordError(f"The record in '{path.parent}' cannot be read: {path.name} is not a regular file.")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _unreadable(folder: Path, error: Exception) -> RecordError:
    return RecordError(f"The record in '{folder}' cannot be read: {short(error)}.")
