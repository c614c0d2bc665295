"""A folder of runs made up of planted numbers, and a real browser where there is one."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

CHROMIUM = os.environ.get("SPIKESINK_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def pytest_collection_modifyitems(items):
    if CHROMIUM is None:
        skip = pytest.mark.skip(reason="no chromium: apt-get install chromium, or set SPIKESINK_CHROMIUM")
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Watched:
    """A page that remembers what went wrong on it and what it asked the network for."""

    def __init__(self, page):
        self.page, self.wrong, self.requests = page, [], []
        page.on("console", lambda message: self.wrong.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path, printed):
        self.page.goto(path.resolve().as_uri())
        # By selector: the policy of the page lets no function be made of text, which waiting for one would need.
        self.page.wait_for_selector("html[data-drawn]", state="attached", timeout=600_000)
        if printed:
            self.page.evaluate("dispatchEvent(new Event('beforeprint'))")
            drawn = f'html[data-drawn="{self.page.locator("[data-figure]").count()}"]'
            self.page.wait_for_selector(drawn, state="attached", timeout=600_000)
        return self.page


@pytest.fixture
def watched(browser):
    """Opens a page and waits until its charts are drawn: all, as for print, or those in view."""

    @contextmanager
    def opened(path, printed=True, **options):
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        watch = Watched(page)
        try:
            watch.open(path, printed)
            yield watch
        finally:
            page.close()

    return opened


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A folder with the records of one model."""
    from made import anatomy, interventions

    folder = tmp_path_factory.mktemp("run")
    anatomy().save(folder)
    interventions().save(folder)
    return folder
