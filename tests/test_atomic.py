"""Files and folders: whole or absent, nothing left over, one writer at a time."""

import os
import stat
import subprocess
import sys
from multiprocessing import get_context

import pytest

from spikesink.atomic import make_folder, replace_folder, write_atomically


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def ended() -> int:
    """The id of a process that is no more."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def test_a_file_is_replaced_and_orphans_of_killed_writers_go(tmp_path):
    path = tmp_path / "a[1].json"
    write_atomically(path, b"one")
    (tmp_path / f".a[1].json-{ended()}-x").write_text("half")
    (tmp_path / f".a[1].json-{os.getpid()}-x").write_text("another thread's")
    (tmp_path / ".a[1].json-notes").write_text("a user's")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == sorted([".a[1].json-notes", f".a[1].json-{os.getpid()}-x", "a[1].json"])
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"one")
    monkeypatch.setattr("spikesink.atomic.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"two")
    assert path.read_bytes() == b"one" and names(tmp_path) == ["a"]


def fill_with(text):
    def fill(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(text)

    return fill


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "new" / "f"
    replace_folder(folder, fill_with("one"))
    (folder.parent / ".partial-f-killed").mkdir()

    def fails(empty):
        (empty / "half").write_text("")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        replace_folder(folder, fails)
    assert names(folder.parent) == ["f", "f/deep", "f/deep/file"]
    replace_folder(folder, fill_with("two"))
    assert (folder / "deep" / "file").read_text() == "two"


def test_a_whole_folder_is_left_alone(tmp_path):
    made = []

    def fill(folder):
        made.append(1)
        fill_with("one")(folder)

    for _ in range(2):
        make_folder(tmp_path / "f", fill, lambda folder: (folder / "deep" / "file").exists())
    assert made == [1]
    (tmp_path / "f" / "deep" / "file").unlink()
    make_folder(tmp_path / "f", fill, lambda folder: (folder / "deep" / "file").exists())
    assert made == [1, 1]


def _make(folder, number):
    def fill(empty):
        with open(folder.parent / "filled", "a") as file:
            file.write(f"{number}\n")
        fill_with(str(number))(empty)

    make_folder(folder, fill, lambda folder: (folder / "deep" / "file").exists())


def test_of_four_at_once_one_fills(tmp_path):
    context = get_context("fork")
    processes = [context.Process(target=_make, args=(tmp_path / "f", number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "filled").read_text().strip() == (tmp_path / "f" / "deep" / "file").read_text()
