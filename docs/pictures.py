"""The pictures of README and docs, from records of the embedded model.  Run: make pictures (scans it first).

    python docs/pictures.py SCAN ALL [DOCS]

SCAN is the folder of a plain scan, whose terminal output becomes DOCS/scan.svg; ALL that of `--measure all`, whose
charts become DOCS/figures/NAME.svg.
"""

import sys
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console

from spikesink import Anatomy
from spikesink.cli.summary import print_summary
from spikesink.report.charts import Figure, anatomy_figures
from spikesink.report.write import drawn

FIGURES = {
    "lifecycle_residual": "life-cycle",
    "lifecycle_shares": "life-cycle",
    "sink_map": "sink",
    "logit_gap": "sink",
    "amplifier_norms": "amplifier",
    "amplifier_spectra": "amplifier",
    "norm_cosine": "implicit-parameter",
}
"""Chart -> the page of docs/concepts that shows it."""

# The stock format fetches a font from the network; a reader's own monospace font does as well.
FORMAT = (
    CONSOLE_SVG_FORMAT[: CONSOLE_SVG_FORMAT.index("@font-face")]
    + CONSOLE_SVG_FORMAT[CONSOLE_SVG_FORMAT.rindex("}}", 0, CONSOLE_SVG_FORMAT.index(".{unique_id}-matrix")) + 2 :]
)


def terminal(record: Anatomy) -> str:
    """What `spikesink scan` prints, as an SVG."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=100, file=nowhere, force_terminal=True, highlight=False)
        print_summary(record, console)
    return console.export_svg(title="spikesink scan", code_format=FORMAT, unique_id="spikesink")


def charts(record: Anatomy) -> dict[str, Figure]:
    """The charts that the pages show, by name; leaves the program where the record lacks one."""
    found = {figure.name: figure for figure in anatomy_figures(record) if figure.name in FIGURES}
    missing = FIGURES.keys() - found.keys()
    return sys.exit(f"The record has no {', '.join(sorted(missing))}: scan with --measure all.") if missing else found


def main(scan: str, everything: str, docs: str = "docs") -> None:
    (Path(docs) / "scan.svg").write_text(terminal(Anatomy.read(Path(scan))))
    folder = Path(docs) / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in charts(Anatomy.read(Path(everything))).items():
        (folder / f"{name}.svg").write_bytes(drawn(figure, "svg"))


if __name__ == "__main__":
    main(*sys.argv[1:])
