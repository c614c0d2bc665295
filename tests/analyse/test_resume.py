"""Finished passes survive a kill; a torn line does not hurt; other settings start anew."""

import json

import pytest

from spikesink.analyse.resume import FinishedPasses, remove_partial


def counted(calls, value):
    def compute():
        calls.append(value)
        return {"value": value}

    return compute


def test_a_second_run_takes_over_what_is_finished(tmp_path):
    calls = []
    first = FinishedPasses(tmp_path, {"a": 1})
    assert first.get("x", counted(calls, 1)) == {"value": 1}
    assert first.get("x", counted(calls, 2)) == {"value": 1}
    again = FinishedPasses(tmp_path, {"a": 1})
    assert len(again) == 1
    assert again.get("x", counted(calls, 3)) == {"value": 1}
    assert again.get("y", counted(calls, 4)) == {"value": 4}
    assert calls == [1, 4]
    other = FinishedPasses(tmp_path, {"a": 2})
    assert other.get("x", counted(calls, 5)) == {"value": 5}
    remove_partial(tmp_path, {"a": 1})
    assert list(tmp_path.iterdir()) == [other.path], "of another run, which may go on"


@pytest.mark.parametrize("torn", [b'{"key": "y", "resu', b'{"key": "y"}\n', b"\xff\xfe\n", b"[1]\n"])
def test_a_torn_line_is_dropped_and_written_again(tmp_path, torn):
    memo = FinishedPasses(tmp_path, {})
    memo.get("x", counted([], 1))
    with memo.path.open("ab") as file:
        file.write(torn)
    again = FinishedPasses(tmp_path, {})
    assert len(again) == 1
    again.get("y", counted([], 2))
    lines = [json.loads(line.split(" ", 1)[1]) for line in again.path.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["x", "y"]


def test_a_line_that_changed_on_the_disk_is_computed_again(tmp_path):
    memo = FinishedPasses(tmp_path, {})
    for key, value in (("x", 1), ("y", 2), ("z", 3)):
        memo.get(key, counted([], value))
    memo.path.write_bytes(memo.path.read_bytes().replace(b'"value": 2', b'"value": 7'))
    calls = []
    again = FinishedPasses(tmp_path, {})
    assert [again.get(key, counted(calls, 9))["value"] for key in "xyz"] == [1, 9, 9]
    assert calls == [9, 9]


def test_a_failed_pass_is_not_kept(tmp_path):
    def fails():
        raise KeyError("mine")

    memo = FinishedPasses(tmp_path, {})
    with pytest.raises(KeyError):
        memo.get("x", fails)
    assert len(FinishedPasses(tmp_path, {})) == 0


def test_without_a_folder_nothing_is_written():
    memo = FinishedPasses()
    assert memo.get("x", counted([], 1)) == {"value": 1}
    assert memo.path is None
