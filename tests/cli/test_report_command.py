"""`spikesink report` as one types it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
from made import anatomy, interventions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("run")
    anatomy(measures=()).save(made)
    interventions().save(made)
    return made


def test_the_page_lies_in_the_run(cli, folder):
    ran = cli("report", folder)
    assert ran.code == 0, ran.err
    # The answer first, in its frame, then where the page is.
    assert ran.out.startswith("╭─ made/model ") and "│ What to do" in ran.out
    assert ran.out.splitlines()[-1].startswith(f"Page: {folder / 'report.html'}")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_records_of_one_folder_have_pages_of_their_own(cli, folder):
    pages = [folder / "anatomy.html", folder / "interventions.html"]
    for page in pages:
        ran = cli("report", page.with_suffix(".json"))
        assert f"\nPage: {page} (" in ran.out and "older" not in ran.out
    assert len({page.read_bytes() for page in pages}) == 2
    assert "in place of an older one" in cli("report", folder / "anatomy.json").out


def test_several_runs_make_a_page_here(cli, folder, tmp_path):
    anatomy(name="other", measures=()).save(tmp_path / "other")
    ran = cli("report", folder, tmp_path / "other")
    assert "\nPage: report.html" in ran.out and (tmp_path / "report.html").exists()


def test_json_and_figures(cli, folder, tmp_path):
    ran = cli("report", folder / "anatomy.json", "--out", "page.html", "--figures", "figures", "--json")
    printed = json.loads(ran.out)
    assert printed["page"] == "page.html" and printed["bytes"] == (tmp_path / "page.html").stat().st_size
    assert sorted(Path(file).name for file in printed["figures"]) == [
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
def test_bad_input_is_one_message(cli, arguments, message):
    ran = cli("report", *arguments)
    assert ran.code == 2 and message in ran.err and "Traceback" not in ran.err
