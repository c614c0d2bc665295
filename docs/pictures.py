"""The pictures of README and docs, from records of the embedded model.  Run: make pictures (makes the records first).

    python docs/pictures.py SCAN ALL INTERVENTIONS [DOCS]

The terminal output of the plain scan SCAN becomes DOCS/scan.svg. The charts of ALL (`--measure all`) and INTERVENTIONS
that a page of DOCS/concepts names become DOCS/figures/NAME.svg, and their captions go between its markers.
"""

import re
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
"""Where a page of docs/concepts shows a chart."""

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


def shown(page: str) -> list[str]:
    """Names of the charts that a page shows."""
    return [place["name"] for place in PLACE.finditer(page)]


def placed(page: str, charts: dict[str, Figure]) -> str:
    """The page with picture, words and caption of every chart as the record has them."""

    def place(found: re.Match) -> str:
        name = found["name"]
        figure = charts[name]
        # Sentences that point at what stands below a chart are about the report's page.
        told = ". ".join(sentence for sentence in figure.alternative.split(". ") if " below" not in sentence)
        words, title, caption = (escape(text) for text in (told, figure.title, f"{figure.caption} {figure.conditions}"))
        picture = f"![{words}](../figures/{name}.svg)"
        return f"<!-- figure: {name} -->\n{picture}\n\n**{title}.** {caption}\n<!-- end -->"

    return PLACE.sub(place, page)


def main(scan: str, everything: str, interventions: str, docs: str = "docs") -> None:
    (Path(docs) / "scan.svg").write_text(terminal(Anatomy.read(Path(scan))))
    records = (Anatomy.read(Path(everything)), Interventions.read(Path(interventions)))
    charts = {figure.name: figure for record in records for figure in record_document(record).figures()}
    folder = Path(docs) / "figures"
    folder.mkdir(exist_ok=True)
    for page in sorted((Path(docs) / "concepts").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        missing = [name for name in shown(text) if name not in charts]
        if missing:
            sys.exit(f"{page.name}: the records have no {', '.join(missing)}; scan with --measure all.")
        page.write_text(placed(text, charts), encoding="utf-8")
        for name in shown(text):
            (folder / f"{name}.svg").write_bytes(drawn(charts[name], "svg"))


if __name__ == "__main__":
    main(*sys.argv[1:])
