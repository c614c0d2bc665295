"""`spikesink report` as one types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
from made import anatomy, interventions


def report(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "spikesink", "report", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("run")
    anatomy(measures=()).save(made)
    interventions().save(made)
    return made


def test_the_page_lies_in_the_run(folder):
    done = report(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Page: {folder / 'report.html'}")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_json_and_figures(folder, tmp_path):
    done = report(folder / "anatomy.json", "--out", tmp_path / "page.html", "--figures", tmp_path / "figures", "--json")
    found = json.loads(done.stdout)
    assert found["page"] == str(tmp_path / "page.html") and found["bytes"] == (tmp_path / "page.html").stat().st_size
    assert sorted(Path(file).name for file in found["figures"]) == [
        "head_importance.svg", "lifecycle_residual.svg", "lifecycle_shares.svg", "lifecycle_write.svg", "sink_map.svg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "does not exist"),
        ((".",), "holds no record"),
        ((".", "--format", "gif"), "expected svg, pdf, png"),
        ((), "Missing argument"),
    ],
)
def test_bad_input_is_one_message(tmp_path, arguments, message):
    done = report(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
