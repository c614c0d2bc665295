"""The pictures of README and docs, from records of the embedded model.  Run: make pictures (makes the records first).

    python docs/pictures.py SCAN ALL INTERVENTIONS [DOCS]
    python docs/pictures.py SCAN                            # the first two alone

The terminal output of the plain scan SCAN becomes DOCS/scan.svg, the top of its page DOCS/page.png. The charts of ALL
(`--measure all`) and INTERVENTIONS that DOCS/gallery.md or a page of DOCS/concepts names become DOCS/figures/NAME.svg,
and their captions go between its markers.
"""

import os
import re
import shutil
import sys
from html import escape
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console

from spikesink import Anatomy, Interventions
from spikesink.report.build import record_document
from spikesink.report.drawing import Figure
from spikesink.report.terminal import print_record
from spikesink.report.write import drawn

PLACE = re.compile(r"<!-- figure: (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)
"""Where a page shows a chart."""

# The stock format fetches a font from the network; a reader's own monospace font does as well.
FORMAT = (
    CONSOLE_SVG_FORMAT[: CONSOLE_SVG_FORMAT.index("@font-face")]
    + CONSOLE_SVG_FORMAT[CONSOLE_SVG_FORMAT.rindex("}}", 0, CONSOLE_SVG_FORMAT.index(".{unique_id}-matrix")) + 2 :]
)


def terminal(record: Anatomy) -> str:
    """What `spikesink scan` prints, as an SVG."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=100, file=nowhere, force_terminal=True, highlight=False)
        print_record(record, console)
    return console.export_svg(title="spikesink scan", code_format=FORMAT, unique_id="spikesink")


def screenshot(page: Path, picture: Path) -> None:
    """The top of a page, in Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1100, "height": 1150})
        shown.goto(page.resolve().as_uri())
        shown.wait_for_selector("html[data-drawn]", state="attached", timeout=60_000)
        shown.screenshot(path=picture)
        browser.close()


def shown(page: str) -> list[str]:
    """Names of the charts that a page shows."""
    return [place["name"] for place in PLACE.finditer(page)]


def placed(page: str, charts: dict[str, Figure], figures: str = "../figures") -> str:
    """The page with picture, words and caption of every chart as the record has them."""

    def place(found: re.Match) -> str:
        name = found["name"]
        figure = charts[name]
        # Sentences that point at what stands below a chart are about the report's page.
        told = ". ".join(sentence for sentence in figure.alternative.split(". ") if " below" not in sentence)
        words, title, caption = (escape(text) for text in (told, figure.title, f"{figure.caption} {figure.conditions}"))
        picture = f"![{words}]({figures}/{name}.svg)"
        heading = title if title.endswith("?") else f"{title}."
        return f"<!-- figure: {name} -->\n{picture}\n\n**{heading}** {caption}\n<!-- end -->"

    return PLACE.sub(place, page)


def main(scan: str, everything: str = "", interventions: str = "", docs: str = "docs") -> None:
    (Path(docs) / "scan.svg").write_text(terminal(Anatomy.read(Path(scan))))
    screenshot(Path(scan) / "report.html", Path(docs) / "page.png")
    if not everything:
        return
    records = (Anatomy.read(Path(everything)), Interventions.read(Path(interventions)))
    charts = {figure.name: figure for record in records for figure in record_document(record).figures()}
    folder = Path(docs) / "figures"
    folder.mkdir(exist_ok=True)
    for page in (*sorted((Path(docs) / "concepts").glob("*.md")), Path(docs) / "gallery.md"):
        text = page.read_text(encoding="utf-8")
        missing = [name for name in shown(text) if name not in charts]
        if missing:
            sys.exit(f"{page.name}: the records have no {', '.join(missing)}; scan with --measure all.")
        page.write_text(placed(text, charts, os.path.relpath(folder, page.parent)), encoding="utf-8")
        for name in shown(text):
            (folder / f"{name}.svg").write_bytes(drawn(charts[name], "svg"))


if __name__ == "__main__":
    main(*sys.argv[1:])
