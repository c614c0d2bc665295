"""The terminal output of a record as an SVG, for README and docs.  Run: make pictures (scans the embedded model)."""

import sys
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console

from spikesink import Anatomy
from spikesink.cli.summary import print_summary

# The stock format fetches a font from the network; a reader's own monospace font does as well.
FORMAT = (
    CONSOLE_SVG_FORMAT[: CONSOLE_SVG_FORMAT.index("@font-face")]
    + CONSOLE_SVG_FORMAT[CONSOLE_SVG_FORMAT.rindex("}}", 0, CONSOLE_SVG_FORMAT.index(".{unique_id}-matrix")) + 2 :]
)


def main(run: str, target: str) -> None:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=100, file=nowhere, force_terminal=True, highlight=False)
        print_summary(Anatomy.read(Path(run)), console)
    svg = console.export_svg(title="spikesink scan", code_format=FORMAT, unique_id="spikesink")
    Path(target).write_text(svg)


if __name__ == "__main__":
    main(*sys.argv[1:])
