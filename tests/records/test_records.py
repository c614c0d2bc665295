"""Records: written whole or not at all, read back equal, and refused when they are something else."""

import datetime
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny, token_ids

import spikesink
from spikesink import Anatomy, scan
from spikesink.access import access
from spikesink.errors import OutputError, RecordError
from spikesink.records import Timing, files
from spikesink.records.files import write_files
from spikesink.records.intervals import to_three_digits


@pytest.fixture(scope="module")
def record():
    return scan(access(tiny("llama")), token_ids())


def test_there_and_back(record, tmp_path):
    record.save(tmp_path / "out")
    again = Anatomy.read(tmp_path / "out")
    assert again.model_dump() == record.model_dump()
    assert again.arrays.keys() == record.arrays.keys()
    for name, array in record.arrays.items():
        assert np.array_equal(again.arrays[name], array, equal_nan=array.dtype.kind == "f")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["anatomy.json", "arrays.safetensors"]


def test_the_file_is_strict_json(record):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads(record.to_json(), parse_constant=refuse)
    assert content["schema"] == 1


def test_a_record_is_frozen(record):
    with pytest.raises(Exception, match="frozen"):
        record.summary.spike = 1.0


def test_a_record_is_printed_on_one_line(record):
    said = str(record)
    assert said == repr(record) and said.startswith("<Anatomy of ") and ": No spikes. The largest" in said
    assert len(said) < 260 and "\n" not in said
    assert "residual_blocks" not in repr(record.model_copy(update={"summary": None}))


def test_an_existing_record_is_kept_without_force(record, tmp_path):
    record.save(tmp_path)
    with pytest.raises(OutputError, match="--force"):
        record.save(tmp_path)
    record.save(tmp_path, force=True)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_full_disk_leaves_the_earlier_record(record, tmp_path, monkeypatch, fails_at):
    record.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        record.save(tmp_path, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_last_file_comes_last(tmp_path, monkeypatch):
    """Killed between two renames: the folder has no record rather than half of one."""
    write_files(tmp_path, {"a": b"old", "z.json": b"old"}, force=True)

    class KilledError(BaseException):
        pass

    replace = os.replace

    def once(source, target):
        replace(source, target)
        raise KilledError

    monkeypatch.setattr(files.os, "replace", once)
    with pytest.raises(KilledError):
        write_files(tmp_path, {"a": b"new", "z.json": b"new"}, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[1, 2]", "expected a record"),
        ("{", "cannot be read"),
        ('{"schema": 99}', "schema 99; this version reads schema 1"),
        ('{"schema": 1, "kind": "anatomy"}', "summary"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_record(record, tmp_path, content, message):
    record.save(tmp_path)
    (tmp_path / "anatomy.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        Anatomy.read(tmp_path)


def test_missing_and_truncated_arrays(record, tmp_path):
    with pytest.raises(RecordError, match=r"anatomy\.json is missing"):
        Anatomy.read(tmp_path)
    record.save(tmp_path)
    assert Anatomy.read(tmp_path / "anatomy.json").summary == record.summary
    with pytest.raises(RecordError, match=r"is a file; expected the folder of a run, or its anatomy\.json"):
        Anatomy.read(tmp_path / "arrays.safetensors")
    arrays = tmp_path / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(RecordError, match="cannot be read"):
        Anatomy.read(tmp_path)
    arrays.unlink()
    with pytest.raises(RecordError, match=r"arrays\.safetensors is missing"):
        Anatomy.read(tmp_path)


def test_a_time_is_taken_in_one_place():
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    timing = Timing.now(forward_s=1.5, total_s=2.5)
    created = datetime.datetime.fromisoformat(timing.created)
    assert created.utcoffset() == datetime.timedelta(0)
    assert before <= created <= datetime.datetime.now(datetime.UTC)
    assert created.microsecond == 0
    assert (timing.load_s, timing.forward_s, timing.total_s) == (0.0, 1.5, 2.5)
    sources = Path(spikesink.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if "datetime.now(" in path.read_text()] == ["base.py"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.74, "+12.7"),
        (-0.12345, "-0.123"),
        (0.61848, "+0.618"),
        (0.0996, "+0.0996"),
        (0.05, "+0.0500"),
        (-5.19e-5, "-0.0001"),
        (4e-5, "+0"),
        (0.0, "+0"),
    ],
)
def test_a_signed_number_is_rounded_once(value, text):
    """Of -0.61848 four decimals and then three digits would be -0.619."""
    assert to_three_digits(value) == text
