"""The atlas from planted rows: what it says, how large it is, and in a browser its table sorted and filtered."""

import re

import pytest
from survey_rows import row, survey, two_hundred

from spikesink.records.survey import SurveyRecord
from spikesink.report import write_page
from spikesink.report.atlas import atlas_document

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
MOST_BYTES = 5_000_000


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    survey(two_hundred()).write(folder / SurveyRecord.file)
    return write_page([folder], folder / "atlas.html")


def test_two_hundred_cells_stay_small(page_file):
    text = page_file.read_text()
    assert page_file.stat().st_size < MOST_BYTES
    assert text.count('class="curve"') == 200 and len(re.findall(r'<th scope="row"', text)) >= 200


def order(document):
    tables = [table for section in document.sections for table in section.tables]
    return next(table for table in tables if table.caption == "Order of appearance")


def test_the_order_of_appearance():
    document = atlas_document(survey(two_hundred()[:10]))
    table = order(document)
    assert table.rows[0][2:] == [
        "step 5,000 (10 million tokens)", "step 3,000 (6 million tokens)", "step 5,000 (10 million tokens)", "–",
        "sinks, then spikes and a step-up block",
    ]  # fmt: skip
    names = [figure.name for figure in document.figures()]
    assert names[-4:] == ["emergence_max_over_median", "emergence_sink_ratio", "emergence_perplexity",
                          "emergence_step_up"]  # fmt: skip


def test_a_thing_that_goes_again_has_not_appeared():
    rows = [
        row(revision=f"step{step}", step=step, has_sinks=there) for step, there in ((1, True), (2, False), (3, True))
    ]
    document = atlas_document(survey(rows))
    assert order(document).rows[0][3] == "step 3"


def test_what_comes_apart_is_said():
    rows = [row("a"), row("b", has_spikes=False), row("c", status="refused", error="no such thing", has_spikes=None)]
    document = atlas_document(survey(rows))
    said = {statement.heading: statement.text for statement in document.statements}
    assert said["Spikes"] == "1 of 2 cells. By norms: pre-norm: 1 of 2."
    assert said["Apart"] == "sinks without spikes in b."
    assert document.sections[-1].tables[0].rows[0][2:] == ["refused", "no such thing"]


@pytest.mark.browser
def test_the_table_is_sorted_and_filtered(watched, page_file):
    with watched(page_file, printed=False) as watch:
        page = watch.page
        charts = page.locator(".chart svg")
        assert charts.count() == 0, "none is in view"
        page.locator("[data-figure]").last.scroll_into_view_if_needed()
        page.wait_for_selector('[data-figure="emergence_step_up"] .chart svg path', state="attached")
        assert 2 <= charts.count() < 6
        rows = page.locator("table.live tbody tr")
        assert rows.count() == 200 and page.locator("[data-shown]").inner_text() == "200 of 200"
        page.get_by_role("button", name="max / median", exact=True).click()
        assert rows.first.locator("td").nth(2).inner_text() == "4,096"
        page.get_by_role("button", name="max / median", exact=True).click()
        assert rows.first.locator("td").nth(2).inner_text() == "8"
        page.locator("[data-filters] input").fill("model-7 step3000")
        assert page.locator("[data-shown]").inner_text() == "1 of 200"
        page.locator("[data-filters] input").fill("")
        page.locator("[data-filters] select").nth(2).select_option("post-norm")
        assert page.locator("table.live tbody tr:visible").count() == 40
        assert watch.wrong == [] and watch.requests == [page_file.resolve().as_uri()]


@pytest.mark.browser
def test_hostile_names_are_text(watched, tmp_path):
    survey([row(HOSTILE, text=HOSTILE, family=HOSTILE)]).write(tmp_path / SurveyRecord.file)
    path = write_page([tmp_path], tmp_path / "atlas.html")
    with watched(path) as watch:
        assert watch.page.locator("img").count() == 0 and watch.wrong == []
        assert HOSTILE in watch.page.locator("table.live tbody th").inner_text()
