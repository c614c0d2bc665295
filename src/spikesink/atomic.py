"""Write files and folders atomically: after a kill, or with several processes at once, they are complete or absent."""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

Fill = Callable[[Path], None]
"""Writes into an empty folder."""


def cache_folder() -> Path:
    """Where what can be made again is kept: $SPIKESINK_CACHE, or spikesink in the user's cache folder."""
    if "SPIKESINK_CACHE" in os.environ:
        return Path(os.environ["SPIKESINK_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spikesink"


def file_sha256(path: Path) -> str:
    """Hash of a file's content, hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_sha256(content: object) -> str:
    """Hash of plain data, whatever the order of its keys, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Put content in the place of a file, on disk before it is renamed there. Raises OSError."""
    temporary = write_temporary(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_temporary(path: Path, content: bytes) -> Path:
    """Write and sync content beside `path`; also removes what killed processes left there. Raises OSError."""
    _remove_orphans(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-{os.getpid()}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def replace_folder(folder: Path, fill: Fill) -> None:
    """Fill a folder beside its place and rename it there, over an older one; one writer at a time.

    Raises what `fill` raises, and OSError; nothing half-written stays, not even of a writer that was killed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".partial-{folder.name}-"
    for orphan in folder.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(orphan, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        fill(temporary)
        for path in temporary.rglob("*"):
            sync(path)
        os.chmod(temporary, 0o777 & ~_umask())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path, fill: Fill, is_whole: Callable[[Path], bool]) -> None:
    """`replace_folder` unless the folder is whole already; of processes that ask at once one fills, the others wait."""
    if is_whole(folder):
        return
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not is_whole(folder):
            replace_folder(folder, fill)


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_orphans(path: Path) -> None:
    orphans = list(path.parent.glob(f"{glob.escape(f'.{path.name}-')}*-*"))
    if not orphans:
        return
    from psutil import pid_exists

    for orphan in orphans:
        writer = orphan.name.removeprefix(f".{path.name}-").split("-")[0]
        if writer.isdigit() and not pid_exists(int(writer)):
            orphan.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
