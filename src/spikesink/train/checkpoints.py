"""Checkpoints that are complete: one counts only with a marker, written last and synced, with its files' hashes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spikesink.atomic import file_sha256, sync, write_atomically
from spikesink.errors import InputError, OutputError, short
from spikesink.train.recipe import Recipe, changed

MARKER = "complete.json"
PREFIX = "checkpoint-"


class _File(BaseModel):
    bytes: int
    sha256: str


class _Marker(BaseModel):
    """What the marker says; files by their path within the checkpoint."""

    step: int
    recipe: dict[str, Any]
    recipe_sha256: str
    source_sha256: str | None = None
    """Of the text; None where that is not known, as of a hub's, and in checkpoints that did not say it."""
    files: dict[str, _File]


def step_of(folder: Path) -> int:
    """The training step in the name of a checkpoint folder."""
    return int(folder.name.removeprefix(PREFIX))


def folders(root: Path) -> list[Path]:
    """Every checkpoint folder, the newest first, whole or not."""
    numbered = [path for path in root.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(numbered, key=step_of, reverse=True)


def mark_complete(folder: Path, recipe: Recipe, source_sha256: str | None = None) -> None:
    """Sync every file to disk, then write the marker."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER):
        sync(path)
        files[str(path.relative_to(folder))] = _File(bytes=path.stat().st_size, sha256=file_sha256(path))
    content = _Marker(
        step=step_of(folder), recipe=recipe.essence(), recipe_sha256=recipe.sha256(), source_sha256=source_sha256,
        files=files,
    )  # fmt: skip
    write_atomically(folder / MARKER, content.model_dump_json(indent=1).encode() + b"\n")
    sync(folder)
    sync(folder.parent)


def is_complete(folder: Path) -> bool:
    """Whether the marker is there and every file has the size it names."""
    marker = _marker(folder)
    if marker is None:
        return False
    files = [(folder / name, file.bytes) for name, file in marker.files.items()]
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def is_undamaged(folder: Path) -> bool:
    """Whether every file also holds what was written; reads them all."""
    marker = _marker(folder)
    return marker is not None and all(file_sha256(folder / name) == file.sha256 for name, file in marker.files.items())


def newest_complete(root: Path) -> Path | None:
    """The newest checkpoint that is whole; half-written ones are passed over."""
    return next((folder for folder in folders(root) if is_complete(folder)), None)


def newest_undamaged(root: Path) -> Path | None:
    """The newest checkpoint to go on from: whole, and as it was written."""
    return next((folder for folder in folders(root) if is_complete(folder) and is_undamaged(folder)), None)


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and half-written ones older than the newest."""
    complete = [folder for folder in folders(root) if is_complete(folder)]
    kept = set(complete[:keep])
    for folder in folders(root):
        if folder not in kept and complete and step_of(folder) < step_of(complete[0]):
            shutil.rmtree(folder, ignore_errors=True)


def discard_newer(root: Path, checkpoint: Path | None) -> None:
    """Delete what is newer than the checkpoint that a run goes on from: it is not whole, and will be written again."""
    for folder in folders(root):
        if checkpoint is None or step_of(folder) > step_of(checkpoint):
            shutil.rmtree(folder, ignore_errors=True)


def check_recipe(folder: Path, recipe: Recipe, *, allow_changed: bool) -> None:
    """Refuse to go on from a checkpoint of another recipe, naming what changed. Raises InputError."""
    marker = _marker(folder)
    if marker is None or marker.recipe_sha256 == recipe.sha256() or allow_changed:
        return
    lines = "\n  ".join(changed(marker.recipe, recipe.essence()))
    raise InputError(
        f"The recipe has changed since '{folder}':\n  {lines}\nResume with the same recipe, use another --out, or pass "
        "--allow-changed-recipe."
    )


def check_text(folder: Path, source_sha256: str | None, *, allow_changed: bool) -> None:
    """Refuse to go on from a checkpoint on another text, which a recipe names and does not hold. Raises InputError."""
    marker = _marker(folder)
    known = marker.source_sha256 if marker is not None else None
    if allow_changed or None in (known, source_sha256) or known == source_sha256:
        return
    raise InputError(
        f"The text has changed since '{folder}': its SHA-256 was {known} and is {source_sha256}. Resume with the same "
        "text, use another --out, or pass --allow-changed-recipe."
    )


@contextmanager
def saving(root: Path, folder: Path) -> Iterator[None]:
    """While a checkpoint is written: if that fails, nothing half-written stays. Raises OutputError."""
    try:
        yield
    # safetensors has its own exception; torch.save raises RuntimeError when a write comes up short.
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        last = newest_complete(root)
        good = f"The last good checkpoint is '{last}'; " if last is not None else "There is no earlier checkpoint; "
        raise OutputError(
            f"The checkpoint '{folder}' could not be written ({short(error)}). {good}free some space and "
            "go on with --resume."
        ) from error


def _marker(folder: Path) -> _Marker | None:
    try:
        return _Marker.model_validate_json((folder / MARKER).read_bytes())
    except (OSError, ValueError):
        return None
