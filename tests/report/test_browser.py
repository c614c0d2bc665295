"""The page in a real browser: charts drawn, a head picked, data saved; no error, no request, no serious barrier."""

import csv
import io

import pytest
from made import HOSTILE, anatomy, interventions, study, training

from spikesink.report import write_page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_file(run, tmp_path_factory):
    return write_page([run], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    for index, name in enumerate(("checkpoint-100", "checkpoint-200")):
        anatomy(name=name, layers=3 + index).save(folder / name)
    training(name="nano").save(folder / "nano")
    return write_page([folder / name for name in ("checkpoint-100", "checkpoint-200", "nano")], folder / "report.html")


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studied")
    study().write(folder / "made-nano.json")
    return write_page([folder], folder / "report.html")


@pytest.fixture
def pages(page_file, compared, studied):
    return {"model": page_file, "compared": compared, "studied": studied}


def fine(watch, path):
    assert watch.wrong == []
    assert watch.requests == [path.resolve().as_uri()], "nothing but the file itself"


def test_charts_are_drawn(watched, page_file):
    with watched(page_file) as watch:
        page = watch.page
        figures = page.locator("[data-figure]").count()
        assert figures >= 20 and page.evaluate("document.documentElement.dataset.drawn") == str(figures)
        for index in range(figures):
            chart = page.locator("[data-figure] .chart").nth(index)
            box = chart.locator("svg").bounding_box()
            assert box["width"] > 200 and box["height"] > 80
            assert chart.locator("svg path, svg text").count() > 5
        fine(watch, page_file)


def test_a_click_on_a_head_shows_that_head(watched, page_file):
    with watched(page_file) as watch:
        page = watch.page
        assert page.locator("html").get_attribute("data-picked") == "1-1"
        cells = page.locator('[data-figure="sink_map"] .mark-rect.role-mark path')
        assert cells.count() == 6
        fills = [cells.nth(index).get_attribute("fill") for index in range(6)]
        assert len(set(fills)) > 2, "importance is colour"
        # rows of the map are in the record's order: block 1 head 0, block 1 head 1, block 3 head 0, ...
        cells.nth(2).click()
        page.wait_for_function("document.documentElement.dataset.picked === '3-0'")
        facts = page.locator("#head-facts").inner_text()
        assert "Block 3 (layer 1, attention), head 0" in facts and "no, in 0 % of the sequences" in facts
        assert "1.5 tokens (uniform 2.5)" in facts and "-0.5 (content -0.3, distance -0.2" in facts
        assert page.locator("#pick-block").input_value() == "3" and page.locator("#pick-head").input_value() == "0"
        bars = page.locator('[data-figure="head_importance"] .mark-rect.role-mark path')
        assert (
            bars.count() == 6
            and "block 3 (layer 1, attention), head 0"
            in page.locator('[data-figure="head_importance"] h3').inner_text()
        )
        assert page.locator('[data-figure="head_plane"] .mark-symbol.role-mark path').count() == 12
        fine(watch, page_file)


def test_a_head_is_picked_with_the_keyboard(watched, page_file):
    with watched(page_file) as watch:
        page = watch.page
        page.focus("#pick-block")
        page.keyboard.press("ArrowDown")
        page.wait_for_function("document.documentElement.dataset.picked === '3-1'")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowUp")
        page.wait_for_function("document.documentElement.dataset.picked === '3-0'")
        assert "Block 3 (layer 1, attention), head 0" in page.locator("#head-facts").inner_text()
        assert page.locator("#head-facts").get_attribute("aria-live") == "polite"


def saved(page, figure, kind):
    with page.expect_download() as download:
        page.locator(f'[data-figure="{figure}"] [data-save="{kind}"]').click()
    return download.value.suggested_filename, open(download.value.path(), "rb").read()


def test_data_and_pictures_can_be_taken_along(watched, page_file):
    with watched(page_file) as watch:
        page = watch.page
        name, content = saved(page, "lifecycle_residual", "csv")
        rows = list(csv.DictReader(io.StringIO(content.decode())))
        assert name == "lifecycle_residual.csv" and len(rows) == 6 * 4
        assert {row["block"]: float(row["magnitude"]) for row in rows if row["which"] == "largest"} == {
            "1": 3.0, "2": 500.0, "3": 500.0, "4": 500.0, "5": 500.0, "6": 3.0
        }  # fmt: skip
        assert saved(page, "sink_map", "svg")[1].startswith(b"<svg")
        assert saved(page, "sink_map", "png")[1].startswith(b"\x89PNG")
        page.locator('[data-figure="lifecycle_residual"] details.rows summary').click()
        shown = page.locator('[data-figure="lifecycle_residual"] details.rows tbody tr')
        # The browser tells of an opened table in its own time.
        shown.first.wait_for()
        assert shown.count() == 24
        fine(watch, page_file)


def test_hostile_text_is_shown_and_not_run(watched, tmp_path):
    anatomy(name=HOSTILE, text=HOSTILE).save(tmp_path)
    interventions(name=HOSTILE, text=HOSTILE).save(tmp_path)
    path = write_page([tmp_path], tmp_path / "report.html")
    with watched(path) as watch:
        page = watch.page
        assert page.title() == f"{HOSTILE} – spikesink" and page.locator("h1").inner_text() == HOSTILE
        assert HOSTILE in page.locator("#tokens").inner_text()
        assert page.locator("img").count() == 0
        fine(watch, path)


def test_hostile_names_in_a_comparison(watched, tmp_path):
    for index in range(2):
        anatomy(name=f"={HOSTILE}{index}").save(tmp_path / str(index))
    path = write_page([tmp_path / "0", tmp_path / "1"], tmp_path / "report.html")
    with watched(path) as watch:
        _, content = saved(watch.page, "compare_plane", "csv")
        names = [row["model"] for row in csv.DictReader(io.StringIO(content.decode()))]
        assert names == [f"'={HOSTILE}{index}" for index in range(2)], "no spreadsheet takes it for a formula"
        assert HOSTILE in watch.page.locator('[data-figure="compare_plane"] svg').text_content()
        assert watch.page.locator("img").count() == 0
        fine(watch, path)


def test_a_study_of_a_hostile_name_is_drawn(watched, tmp_path):
    study(HOSTILE, {HOSTILE: (900.0, 0.4), "baseline": (30.0, 0.3)}).write(tmp_path / "s.json")
    path = write_page([tmp_path / "s.json"], tmp_path / "report.html")
    with watched(path) as watch:
        page = watch.page
        assert page.evaluate("document.documentElement.dataset.drawn") == str(page.locator("[data-figure]").count())
        assert page.locator("h1").inner_text() == f"{HOSTILE} at nano" and page.locator("img").count() == 0
        fine(watch, path)


def test_a_script_from_elsewhere_is_refused(watched, page_file):
    """The policy works: neither an inline script nor eval nor a request gets through."""
    with watched(page_file) as watch:
        page = watch.page
        page.evaluate(
            "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s)"
        )
        page.evaluate("const i = new Image(); i.src = 'https://example.invalid/x.png'; document.body.append(i)")
        assert page.evaluate("window.owned") is None
        assert any("Content Security Policy" in text for text in watch.wrong)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["model", "compared", "studied"])
def test_no_serious_barrier(watched, pages, kind, scheme):
    from axe_playwright_python.sync_playwright import Axe

    path = pages[kind]
    with watched(path, color_scheme=scheme) as watch:
        watch.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        response = Axe().run(watch.page).response
        grave = [
            (item["id"], item["nodes"][0]["html"][:200], item["nodes"][0].get("failureSummary"))
            for item in response["violations"]
            if item["impact"] in ("serious", "critical")
        ]
        assert grave == []
        assert len(response["passes"]) > 20


def test_dark_and_light_by_the_button(watched, page_file):
    with watched(page_file, color_scheme="light") as watch:
        page = watch.page
        label = '[data-figure="lifecycle_residual"] svg .role-axis-title text'
        before = (
            page.locator(label).first.get_attribute("fill"),
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
        )
        page.locator('button[data-theme="dark"]').click()
        page.wait_for_function(f"document.querySelector('{label}')?.getAttribute('fill') !== '{before[0]}'")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before[1]
        assert page.locator('button[data-theme="dark"]').get_attribute("aria-pressed") == "true"
        fine(watch, page_file)


CUT_OFF = """texts => texts.filter((text) => {
  const [word, chart] = [text, text.closest("svg")].map((one) => one.getBoundingClientRect());
  return text.textContent.endsWith("…") || word.left < chart.left - 2 || word.right > chart.right + 2;
}).map((text) => text.closest("[data-figure]").dataset.figure + ": " + text.textContent)"""


@pytest.mark.parametrize("kind", ["model", "compared", "studied"])
def test_a_phone_scrolls_down_only(watched, pages, kind):
    path = pages[kind]
    with watched(path, viewport={"width": 375, "height": 740}) as watch:
        assert watch.page.evaluate("document.documentElement.scrollWidth") <= 375
        cut = watch.page.locator(".chart svg text").evaluate_all(CUT_OFF)
        assert cut == [], "words of charts are whole, and inside their chart"
        fine(watch, path)


def test_two_of_everything_are_drawn(watched, compared):
    with watched(compared) as watch:
        names = watch.page.locator("[data-figure]").evaluate_all("all => all.map((one) => one.dataset.figure)")
        assert {"compare_steps", "compare_lifecycle", "compare_sinks", "compare_plane", "training_loss"} <= set(names)
        lines = watch.page.locator('[data-figure="compare_lifecycle"] .mark-line.role-mark path')
        assert lines.count() == 2
        fine(watch, compared)
