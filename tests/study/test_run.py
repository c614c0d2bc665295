"""Whole studies in real processes: killed and gone on with, cells that crash, diverge, or are there already."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from study_cases import GRID, TINY, InProcess, base, without_timing

from spikesink.errors import InputError, OutputError
from spikesink.records.study import CellRecord
from spikesink.study import verdict
from spikesink.study.cell import failed, run_cell
from spikesink.study.executors import Local
from spikesink.study.grid import Grid
from spikesink.study.run import Study
from spikesink.train.streams import source_sha256

SOURCE = Path(__file__).parent.parent.parent / "src"
TIMEOUT = 1200


def quiet(stage, done, total):
    pass


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    study = Study("grid", GRID, base(), out / "results", seeds=1)
    return out, study.run(InProcess(), out / "work", quiet)


def test_every_cell_has_a_record_and_a_run(undisturbed):
    out, study = undisturbed
    assert [(row.variant, row.seeds) for row in study.rows] == [("plain", [0]), ("wide", [0]), ("dyt", [0])]
    run = out / "work" / "grid-tiny" / "dyt-0"
    assert {path.name for path in run.iterdir()} >= {"recipe.yaml", "log.jsonl", "model", "scan", "training.json"}
    record = out / "results" / "grid-tiny" / "dyt-0.json"
    assert record.stat().st_size < 50_000
    content = json.loads(record.read_text())
    assert content["curves"]["sink_ratio"]["step"] == [4, 8, 12]
    assert content["curves"]["loss_nats"]["step"] == list(range(1, 13))
    assert str(out) not in record.read_text()


def test_the_record_is_what_a_scan_of_the_model_finds(undisturbed):
    import numpy as np

    from spikesink import scan

    out, study = undisturbed
    run = out / "work" / "grid-tiny" / "plain-0"
    summary = scan(str(run / "model"), np.load(run / "held_out.npy")).summary
    (row,) = (row for row in study.rows if row.variant == "plain")
    assert row.values["spike"] == [pytest.approx(summary.spike, rel=1e-6)]
    assert row.values["perplexity"] == [pytest.approx(summary.perplexity, rel=1e-6)]
    assert row.values["sink_ratio"] == [pytest.approx(summary.sink_ratio_sun2026, abs=1e-9)]


def test_a_cell_says_how_much_attention_lies_on_no_token(tmp_path):
    from spikesink.records import Anatomy

    grid = Grid.parse({**GRID.model_dump(mode="json"), "claims": [], "variants": {
        "plain": {"summary": "as it is", "set": {"model.normaliser": "learned_sink"}}}})  # fmt: skip
    (row,) = Study("grid", grid, base(), tmp_path, seeds=1).run(InProcess(), tmp_path / "work", quiet).rows
    sinks = Anatomy.read(tmp_path / "work" / "grid-tiny" / "plain-0" / "scan").sinks
    assert row.values["virtual_mass"] == [pytest.approx(sinks.virtual_mass, rel=1e-6)] and 0 < sinks.virtual_mass < 1


def command(out, *more):
    grid = out.parent / "grid.yaml"
    grid.write_text(yaml.safe_dump(GRID.model_dump(mode="json"), sort_keys=False))
    recipe = out.parent / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    return [
        sys.executable, "-m", "spikesink", "study", str(grid), "--preset", str(recipe), "--seeds", "1", "--jobs", "2",
        "--out", str(out / "results"), "--work", str(out / "work"), *more,
    ]  # fmt: skip


def test_killed_and_started_again_ends_in_the_same_table(undisturbed, tmp_path):
    """SIGKILL to the study alone, as soon as a cell trains: its workers end by themselves and hold no lock."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    out = tmp_path / "study"
    out.mkdir()
    process = subprocess.Popen(command(out), env=environment, stderr=subprocess.DEVNULL)
    logs = out / "work" / "grid-tiny"
    deadline = time.monotonic() + TIMEOUT
    while not any(logs.glob("*/log.jsonl")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "results" / "grid-tiny.json").exists()
    again = subprocess.run(
        command(out, "--json"), env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT
    )
    assert again.returncode == 0, again.stderr
    whole = without_timing(undisturbed[0] / "results" / "grid-tiny.json")
    assert without_timing(out / "results" / "grid-tiny.json") == whole
    assert json.loads(again.stdout)["rows"] == whole["rows"]


class NoExecutor:
    threads, device = 1, "cpu"

    def run(self, cells, folder, progress):
        assert not cells, "a finished cell is never run again"
        return iter(())


def test_goes_on_from_committed_records(undisturbed, tmp_path):
    out, whole = undisturbed
    study = Study("grid", GRID, base(), out / "results", seeds=1)
    assert study.run(NoExecutor(), tmp_path, quiet).rows == whole.rows


def test_a_study_keeps_the_rules_that_it_began_with(undisturbed, tmp_path):
    """Newer ones would be chosen with its figures seen; rules that are no longer known are replaced."""
    out, made = undisturbed
    assert made.rules_version == verdict.VERSION
    shutil.copytree(out / "results" / "grid-tiny", tmp_path / "grid-tiny")
    study = Study("grid", GRID, base(), tmp_path, seeds=1)
    for begun_with, kept in ((3, 3), (2, verdict.VERSION)):
        made.model_copy(update={"rules_version": begun_with}).write(tmp_path / "grid-tiny.json")
        again = study.write()
        assert again.rules_version == kept
        assert again.rules["part_least"] == verdict.RULES[kept].part_least


def test_a_shared_baseline_is_run_once(undisturbed, tmp_path):
    out, whole = undisturbed
    other = Study("other", GRID, base(), out / "results", seeds=1, only=["plain"])
    (row,) = other.run(NoExecutor(), tmp_path, quiet).rows
    assert row.values == whole.rows[0].values


@pytest.mark.parametrize("lacking", ["function", "attention_behind"])
def test_what_an_earlier_record_lacks_comes_from_the_same_run_in_another_study(undisturbed, tmp_path, lacking):
    """Neither is there a model to measure in --work."""
    out, _ = undisturbed
    shutil.copytree(out / "results" / "grid-tiny", tmp_path / "results" / "grid-tiny")
    other = Study("other", GRID, base(), tmp_path / "results", seeds=1, only=["plain"])
    other.run(NoExecutor(), tmp_path, quiet)
    kept = other.records / "plain-0.json"
    whole = json.loads(kept.read_text())
    assert isinstance(whole["function"]["attention_behind"], int)
    earlier = {**whole, "function": None if lacking == "function" else {**whole["function"], lacking: None}}
    kept.write_text(json.dumps(earlier))
    other.run(NoExecutor(), tmp_path, quiet)
    assert json.loads(kept.read_text())["function"] == whole["function"]


def test_what_an_earlier_record_lacks_is_measured_of_its_own_model_alone(undisturbed, tmp_path):
    """A run that was trained again on another processor, under the same name, is of another model."""
    out, _ = undisturbed
    study = Study("grid", GRID, base(), tmp_path / "results", seeds=1, only=["plain"])
    study.records.mkdir(parents=True)
    kept = study.records / "plain-0.json"
    whole = json.loads((out / "results" / "grid-tiny" / kept.name).read_text())
    other = {**whole["curves"], "spike": {"step": [4, 8, 12], "value": [1.0, 2.0, 3.0]}}
    kept.write_text(json.dumps({**whole, "function": None, "curves": other}))
    # Neither is what another study has of the same recipe the record's.
    elsewhere = tmp_path / "results" / "other-tiny" / kept.name
    elsewhere.parent.mkdir()
    elsewhere.write_text(json.dumps(whole))
    with pytest.warns(UserWarning, match="of another run than its record"):
        study.run(NoExecutor(), out / "work", quiet)
    assert json.loads(kept.read_text())["function"] is None
    elsewhere.unlink()
    kept.write_text(json.dumps({**whole, "function": None}))
    study.run(NoExecutor(), out / "work", quiet)
    assert json.loads(kept.read_text())["function"] == whole["function"]


def test_a_record_of_another_recipe_is_refused(undisturbed, tmp_path):
    out, _ = undisturbed
    study = Study("grid", GRID, base("training.steps=13"), out / "results", seeds=1)
    with pytest.raises(InputError, match="another recipe"):
        study.run(NoExecutor(), tmp_path, quiet)


def test_a_record_of_another_text_is_refused(undisturbed, tmp_path):
    """A recipe names a text by its path, or as this Python's: what it reads may change. Old records do not say."""
    out, whole = undisturbed
    shutil.copytree(out / "results" / "grid-tiny", tmp_path / "results" / "grid-tiny")
    study = Study("grid", GRID, base(), tmp_path / "results", seeds=1)
    kept = study.records / "plain-0.json"
    content = json.loads(kept.read_text())
    assert content["provenance"]["tokens"]["source_sha256"] == source_sha256(base()) is not None
    content["provenance"]["tokens"]["source_sha256"] = "0" * 64
    kept.write_text(json.dumps(content))
    with pytest.raises(InputError, match="another text"):
        study.run(NoExecutor(), tmp_path, quiet)
    other = Study("other", GRID, base(), tmp_path / "results", seeds=1, only=["plain"])
    with pytest.raises(AssertionError, match="never run again"):
        other.run(NoExecutor(), tmp_path, quiet)
    del content["provenance"]["tokens"]["source_sha256"]
    kept.write_text(json.dumps(content))
    assert study.run(NoExecutor(), tmp_path, quiet).rows == whole.rows


@pytest.mark.parametrize("changed", ["source_sha256", "threads", "device", "recipe_sha256"])
def test_a_run_of_something_else_is_no_part_of_a_cell(undisturbed, tmp_path, changed):
    """What --work holds of another text, device, number of threads or recipe is begun anew, as what does not say."""
    out, _ = undisturbed
    for folder in ("same", "other"):
        shutil.copytree(out / "work" / "grid-tiny" / "plain-0", tmp_path / folder)
    (cell,) = (one for one in Study("grid", GRID, base(), tmp_path, seeds=1).cells if one.name == "plain-0")
    begun = tmp_path / "other" / "cell.json"
    begun.write_text(json.dumps({**json.loads(begun.read_text()), changed: "another"}))
    trained = [(tmp_path / folder / "training.json").stat().st_mtime_ns for folder in ("same", "other")]
    records = [run_cell(cell, tmp_path / folder, quiet) for folder in ("same", "other")]
    again = [(tmp_path / folder / "training.json").stat().st_mtime_ns for folder in ("same", "other")]
    assert [new == old for new, old in zip(again, trained, strict=True)] == [True, False]
    assert records[0].measured == records[1].measured
    assert records[1].provenance.tokens["source_sha256"] == source_sha256(base())


def test_every_record_of_the_table_is_checked(undisturbed, tmp_path):
    """Also of variants and seeds that are not asked for now: one table has one recipe, device and held-out text."""
    out, _ = undisturbed
    shutil.copytree(out / "results" / "grid-tiny", tmp_path / "grid-tiny")

    class OnCuda(NoExecutor):
        device = "cuda"

    changed = base("training.steps=13")
    for study, executor, message in (
        (
            Study("grid", GRID, changed, tmp_path, seeds=1, first_seed=7),
            NoExecutor(),
            "dyt-0.json' was made with another",
        ),
        (Study("grid", GRID, base(), tmp_path, seeds=1, first_seed=7), OnCuda(), "made on 'cpu', this study runs on"),
        (Study("grid", GRID, base("data.seed=5"), tmp_path, seeds=1), NoExecutor(), "other held-out sequences"),
    ):
        with pytest.raises(InputError, match=message):
            study.run(executor, tmp_path / "work", quiet)


def test_a_cell_that_crashes_is_tried_twice_and_shown(tmp_path):
    """Its folder is a file: no process of it can ever start to train."""
    work = tmp_path / "work" / "grid-tiny" / "wide-0" / "held_out.npy"
    work.mkdir(parents=True)
    study = Study("grid", GRID, base("monitor.every=0"), tmp_path / "results", seeds=1, only=["wide"])
    record = study.run(Local(jobs=2), tmp_path / "work", quiet)
    assert [(row.variant, row.failed, row.seeds) for row in record.rows] == [("plain", 0, [0]), ("wide", 1, [])]
    content = json.loads((study.records / "wide-0.json").read_text())
    assert (content["status"], content["attempts"]) == ("failed", 2)
    assert "held_out.npy" in content["error"] or "folder" in content["error"]
    # Failures may be the machine's: started again, such a cell is run again.
    work.rmdir()
    assert [row.failed for row in study.run(InProcess(), tmp_path / "work", quiet).rows] == [0, 0]


def test_divergence_is_a_result(tmp_path):
    study = Study(
        "grid", GRID, base("optimiser.lr=1e30", "optimiser.grad_clip=0"), tmp_path / "out", seeds=1, only=["dyt"]
    )
    record = study.run(InProcess(), tmp_path / "work", quiet)
    assert [(row.variant, row.diverged) for row in record.rows] == [("plain", 1), ("dyt", 1)]
    assert all("not finite" in line or "loss is" in line for line in record.errors)
    assert study.run(NoExecutor(), tmp_path / "work", quiet).rows == record.rows


class LosesOne(InProcess):
    def run(self, cells, folder, progress):
        for cell in cells:
            lost = cell.variant == "wide"
            yield failed(cell, "the disk is full", 2) if lost else next(super().run([cell], folder, progress))


def test_a_study_that_lacks_cells_ends_with_exit_code_2(tmp_path, monkeypatch, cli):
    """Its table is there, and says so too; typed again it is whole, and ends with 0."""
    out = tmp_path / "study"
    out.mkdir()
    message = "1 of 2 cells failed, and the table lacks them (wide, seed 0: failed: the disk is full)"
    for executor, code in ((LosesOne(), 2), (InProcess(), 0)):
        monkeypatch.setattr("spikesink.cli.study._executor", lambda *_, executor=executor: executor)
        ran = cli(*command(out, "--only", "wide")[3:])
        assert ran.code == code
        assert (message in " ".join(ran.err.split())) == (code == 2)
        assert (out / "results" / "grid-tiny.md").exists()


def test_a_work_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "work").write_text("in the way")
    study = Study("grid", GRID, base(), tmp_path / "results", seeds=1)
    with pytest.raises(OutputError, match=r"another folder \(--work\)"):
        study.run(NoExecutor(), tmp_path / "work", quiet)


def test_the_device_is_part_of_a_cell(undisturbed, tmp_path, monkeypatch):
    out, _ = undisturbed
    assert CellRecord.read_file(out / "results" / "grid-tiny" / "plain-0.json").provenance.settings["device"] == "cpu"
    monkeypatch.setattr(NoExecutor, "device", "cuda")
    with pytest.raises(InputError, match=r"plain-0.json' was made on 'cpu', this study runs on 'cuda'; choose another"):
        Study("grid", GRID, base(), out / "results", seeds=1).run(NoExecutor(), tmp_path, quiet)
    # Nor does another study take it over.
    other = Study("third", GRID, base(), out / "results", seeds=1, only=["plain"])
    with pytest.raises(AssertionError, match="never run again"):
        other.run(NoExecutor(), tmp_path, quiet)


def test_the_number_of_threads_is_part_of_a_cell(undisturbed, tmp_path, monkeypatch):
    out, _ = undisturbed
    monkeypatch.setattr(InProcess, "threads", 2)
    with pytest.raises(InputError, match="made with 1 threads, this study runs with 2; pass --threads 1"):
        Study("grid", GRID, base(), out / "results", seeds=1).run(InProcess(), tmp_path, quiet)
