"""Variants that the base recipe is too small for: named when a study starts, and in what it leaves behind."""

import contextlib
import json
import sys

import pytest
import yaml
from study_cases import TINY, InProcess

from spikesink.cli.main import run
from spikesink.errors import InputError
from spikesink.records.study import StudyRecord
from spikesink.study.grid import Grid, impossible, load_grid
from spikesink.study.run import Study
from spikesink.train.recipe import Recipe

GRID = {
    "about": "How many key heads?",
    "baseline": "one",
    "variants": {
        "one": {"summary": "as it is"},
        "half": {"summary": "half of them", "scale": {"model.n_kv_heads": 0.5}},
    },
}
SAID = "left out: half: scale model.n_kv_heads: 1 x 0.5 is no whole number; the base is too small for it."


@pytest.fixture
def study(tmp_path, monkeypatch, capfd):
    """`spikesink study` on the tiny recipe, in this process: its output and what it said."""
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    monkeypatch.setattr("spikesink.cli.study._executor", lambda *_: InProcess())
    out = ("--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"))
    source = ("study", str(tmp_path / "keys.yaml"), "--preset", str(tmp_path / "tiny.yaml"), "--seeds", "1")

    def ran(*more):
        monkeypatch.setattr(sys, "argv", ["spikesink", *source, *out, *more])
        with contextlib.suppress(SystemExit):
            run()
        return capfd.readouterr()

    return ran


def test_they_are_named(study, tmp_path):
    ran = study("--json")
    assert SAID in ran.err.splitlines()
    record = json.loads(ran.out)
    assert [row["variant"] for row in record["rows"]] == ["one"]
    assert f"left out: half: {record['left_out']['half']}" == SAID
    assert StudyRecord.read_file(tmp_path / "out" / "keys-tiny.json").left_out == record["left_out"]
    assert f"- {SAID}" in (tmp_path / "out" / "keys-tiny.md").read_text().splitlines()
    assert record["left_out"]["half"] in (tmp_path / "out" / "keys-tiny.html").read_text()
    chosen = study("--only", "one", "--seeds", "3")
    assert SAID not in chosen.err, "others were chosen"
    said = "".join(chosen.out.replace("│", "").split())
    assert f"spikesinkreport{tmp_path / 'out' / 'keys-tiny.json'}--figures" in said, "as it can be pasted"


def test_one_that_is_asked_for_is_refused(tmp_path):
    with pytest.raises(InputError, match="too small for it"):
        Study("keys", Grid.parse(GRID), Recipe.read(TINY, []), tmp_path, only=["half"])


def test_bos_again_needs_bos():
    """A text without it has no `late_bos`, and that is known before a run begins."""
    _, grid = load_grid("normalisation")
    assert impossible(grid, Recipe.read(TINY, [])) == {}
    (name,) = (left := impossible(grid, Recipe.read(TINY, ["data.bos=false"])))
    assert name == "late_bos" and "data.source.restarts is 1 at seq_len" in left[name]


def test_records_from_before_it_was_said_are_read(study, tmp_path):
    study("--json")
    path = tmp_path / "out" / "keys-tiny.json"
    content = json.loads(path.read_text())
    del content["left_out"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    whole = StudyRecord.read_file(path)
    assert StudyRecord.read_file(tmp_path / "old.json") == whole.model_copy(update={"left_out": {}})
