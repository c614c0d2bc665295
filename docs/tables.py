"""Puts the tables of results/ into README and docs, between their markers: python docs/tables.py [--check]

A place looks like `<!-- table: results/NAME.json -->` ... `<!-- end -->`, `study:` for table, verdicts and claims,
`grafts:` for a folder of grafts, `findings:` for
a folder of all of them (a summary in README); what stands between is made from the record.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spikesink.records.files import write_files
from spikesink.records.study import StudyRecord
from spikesink.records.training import GraftRecord
from spikesink.report.drawing import Figure
from spikesink.report.evidence import Evidence, Line, read_evidence
from spikesink.report.findings import findings
from spikesink.report.format import NONE, interval, number, percent, signed
from spikesink.report.graft import NAMES
from spikesink.report.write import drawn
from spikesink.study.table import markdown, table_markdown

ROOT = Path(__file__).parent.parent
PICTURES = "findings"
"""Folder of the pictures of docs/findings.md, beside it."""
PLACE = re.compile(r"(<!-- (table|study|grafts|findings): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: Path) -> str:
    """The page with every table as its record has it."""
    text = page.read_text(encoding="utf-8")
    return PLACE.sub(lambda place: f"{place[1]}{_made(place[2], ROOT / place[3], page)}\n{place[4]}", text)


def _made(what: str, path: Path, page: Path) -> str:
    if what == "grafts":
        return grafts(path)
    if what == "findings":
        evidence = read_evidence(path)
        return summary_markdown(evidence) if page.name == "README.md" else findings_markdown(evidence, PICTURES)
    study = StudyRecord.read_file(path)
    return table_markdown(study) if what == "table" else markdown(study).partition("\n\n")[2]


def grafts(folder: Path) -> str:
    """A row for every model of every graft in the folder."""
    records = {path.parent.name: GraftRecord.read(path.parent) for path in sorted(folder.glob("*/graft.json"))}
    columns = ["graft", "model", "steps", "perplexity", "norm ratio", "sink ratio", "first key", "int8", "fp8", "cost"]
    rows = [
        [
            graft, NAMES[name], f"{record.steps if name in ('healed', 'control') else 0}",
            interval(point.perplexity), number(point.norm_ratio),
            percent(point.sink_ratio), number(point.first_key_importance), signed(point.int8_nats.value),
            signed(point.fp8_nats.value), interval(record.cost_nats) if name == "healed" else "",
        ]
        for graft, record in records.items()
        for name, point in record.points.items()
    ]  # fmt: skip
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def findings_markdown(evidence: Evidence, pictures: str) -> str:
    """Every finding as markdown; `pictures`: folder of the charts, as a page beside it names it."""
    parts, shown = [], set()
    for one in findings(evidence):
        lines = ["| route | of | n | what it says | verdict |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {line.route} | {line.source} | {line.size} | {line.says} | {line.verdict or NONE} |"
            for line in one.lines
        ]
        new = [figure for figure in one.figures if figure.name not in shown]
        shown.update(figure.name for figure in new)
        drawn = [f"![{figure.alternative}]({pictures}/{figure.name}.svg)" for figure in new]
        parts.append(
            "\n\n".join(
                [f"## {one.heading}", *([f"**{one.intro}**"] if one.intro else []), "\n".join(lines), *drawn,
                 f"What would change it: {one.change}", f"The paper: {one.paper}"]
            )
        )  # fmt: skip
    return "\n\n".join([*parts, *filter(None, [evidence.without])])


def summary_markdown(evidence: Evidence) -> str:
    """A row a claim."""
    rows = [f"| {one.title}: {one.text} | **{one.verdict}** | {_briefly(one.lines)} |" for one in findings(evidence)]
    return "\n".join(["| claim | verdict | evidence |", "| --- | --- | --- |", *rows])


def _briefly(lines: Sequence[Line]) -> str:
    """How much each route has: `finished model: 3 x 24 sequences; from scratch: 8 seeds`."""
    counts: dict[str, Counter[str]] = {}
    for line in lines:
        if not line.n.startswith("0"):
            counts.setdefault(line.route, Counter())[line.n] += line.models
    return (
        "; ".join(
            f"{route}: {', '.join(f'{times} x {n}' if times > 1 else n for n, times in routes.items())}"
            for route, routes in counts.items()
        )
        or "none"
    )


def finding_figures(evidence: Evidence) -> list[Figure]:
    """Every picture once."""
    by_name = {figure.name: figure for one in findings(evidence) for figure in one.figures}
    return list(by_name.values())


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    stale = [page for page in pages() if filled(page) != page.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(page.name for page in stale)}; run python docs/tables.py" if stale else 0)
    for page in stale:
        page.write_text(filled(page), encoding="utf-8")
        print(f"filled {page.name}")
    for figure in finding_figures(read_evidence(ROOT / "results")):
        write_files(ROOT / "docs" / PICTURES, {f"{figure.name}.svg": drawn(figure, "svg")}, force=True)


if __name__ == "__main__":
    main()
