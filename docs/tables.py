"""Puts the tables of results/ into README and docs, between their markers: python docs/tables.py [--check]

A place looks like `<!-- table: results/NAME.json -->` ... `<!-- end -->`, `study:` for table, verdicts and claims,
or `grafts:` for a folder of grafts; what stands between is made from the record.
"""

import re
import sys
from pathlib import Path

from spikesink.records.study import StudyRecord
from spikesink.records.training import GraftRecord
from spikesink.report.format import interval, number, percent, signed
from spikesink.report.graft import NAMES
from spikesink.study.table import markdown, table_markdown

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"(<!-- (table|study|grafts): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The page with every table as its record has it."""
    return PLACE.sub(lambda place: f"{place[1]}{_made(place[2], ROOT / place[3])}\n{place[4]}", text)


def _made(what: str, path: Path) -> str:
    if what == "grafts":
        return grafts(path)
    study = StudyRecord.read_file(path)
    return table_markdown(study) if what == "table" else markdown(study).partition("\n\n")[2]


def grafts(folder: Path) -> str:
    """A row for every model of every graft in the folder."""
    records = {path.parent.name: GraftRecord.read(path.parent) for path in sorted(folder.glob("*/graft.json"))}
    columns = ["graft", "model", "steps", "perplexity", "norm ratio", "sink ratio", "first key", "int8", "fp8"]
    rows = [
        [
            graft, NAMES[name], f"{record.steps if name in ('healed', 'control') else 0}",
            interval(point.perplexity), number(point.norm_ratio),
            percent(point.sink_ratio), number(point.first_key_importance), signed(point.int8_nats.value),
            signed(point.fp8_nats.value),
        ]
        for graft, record in records.items()
        for name, point in record.points.items()
    ]  # fmt: skip
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    stale = [page for page in pages() if filled(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(page.name for page in stale)}; run python docs/tables.py" if stale else 0)
    for page in stale:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"filled {page.name}")


if __name__ == "__main__":
    main()
