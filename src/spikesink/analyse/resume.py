"""Finished passes kept in a file, so that a run that was killed goes on where it stopped."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spikesink.errors import OutputError


def settings_hash(settings: dict[str, Any]) -> str:
    """What must be equal for a finished pass to be taken over."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def partial_file(folder: Path, settings: dict[str, Any]) -> Path:
    """Where finished passes of these settings are kept."""
    return folder / f".interventions-{settings_hash(settings)}.partial.jsonl"


class FinishedPasses:
    """Results by key; with a folder also on disk, a JSON line each with its hash, until `remove_partial`.

    A line that was cut off when the process died, or changed since, is computed again, and so are those behind it.
    """

    def __init__(self, folder: Path | None = None, settings: dict[str, Any] | None = None) -> None:
        self.path = None if folder is None else partial_file(folder, settings or {})
        self._results: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.exists():
            try:
                self._read(self.path)
            except OSError as error:
                raise OutputError(f"'{self.path}' cannot be used: {error.strerror or error}. Delete it.") from error

    def __len__(self) -> int:
        return len(self._results)

    def _read(self, path: Path) -> None:
        whole = 0
        with path.open("rb") as file:
            for line in file:
                digest, _, content = line.partition(b" ")
                if digest != _digest(content):
                    break
                entry = json.loads(content)
                self._results[entry["key"]] = entry["result"]
                whole += len(line)
        os.truncate(path, whole)

    def get(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of this key: computed once, and on disk before it is returned."""
        if key not in self._results:
            self._results[key] = compute()
            if self.path is not None:
                content = json.dumps({"key": key, "result": self._results[key]}).encode() + b"\n"
                self._append(self.path, _digest(content) + b" " + content)
        return self._results[key]

    def _append(self, path: Path, line: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"A finished pass cannot be kept in '{path.parent}': {error.strerror or error}. Free some space and "
                "run the same command again: it goes on from there."
            ) from error


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()


def remove_partial(folder: Path, settings: dict[str, Any]) -> None:
    """Remove what finished passes of these settings left in a folder, once its record is written."""
    partial_file(folder, settings).unlink(missing_ok=True)
