"""`spikesink report`: a page and figures from records, without the model."""

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spikesink.cli.checks import refuse_idle
from spikesink.errors import InputError

if TYPE_CHECKING:
    from spikesink.cli.options import Loading, Text

Runs = Annotated[
    list[Path], typer.Argument(help="Folders of runs: of one model, of several to compare, or of a study.")
]
PageOut = Annotated[
    Path | None, typer.Option("--out", help="Default: report.html in a folder or, for several, here; FILE.html.")
]
FigureFolder = Annotated[Path | None, typer.Option("--figures", help="Write every chart as a file here too.")]
Format = Annotated[str, typer.Option("--format", help="Of the figures: svg, pdf or png.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print where the files are as JSON and nothing else on stdout.")]


def report_command(
    context: typer.Context,
    runs: Runs,
    out: PageOut = None,
    figures: FigureFolder = None,
    file_format: Format = "svg",
    json: AsJson = False,
) -> None:
    """Write one self-contained page of these runs, and figures for a paper; print its answer."""
    from spikesink.report import FORMATS
    from spikesink.report.terminal import print_answer
    from spikesink.report.write import write_report

    if file_format not in FORMATS:
        raise InputError(f"--format is '{file_format}'; expected {', '.join(FORMATS)}.")
    if figures is None:
        refuse_idle(context, ("file_format",), "charts are written as files by --figures FOLDER")
    target = out or default_page(runs)
    replaced = target.is_file()
    document, files = write_report(runs, target, figures, file_format)
    if json:
        written = {"page": str(target), "bytes": target.stat().st_size, "figures": [str(file) for file in files]}
        sys.stdout.write(json_module.dumps(written, indent=1) + "\n")
        return
    print_answer(document)
    print(f"Page: {target} ({target.stat().st_size / 1e6:.1f} MB{', in place of an older one' if replaced else ''})")
    if files:
        print(f"Figures: {figures} ({len(files)} files)")


def default_page(runs: list[Path]) -> Path:
    """report.html in the folder of one run, NAME.html beside one file NAME.json; report.html here for several."""
    if len(runs) > 1:
        return Path("report.html")
    run = runs[0]
    # Of the records in a folder each has a page of its own; report.html is of them all.
    return run.with_suffix(".html") if run.is_file() else run / "report.html"


def places(run: Path | None, loading: "Loading | None" = None, text: "Text | None" = None) -> dict[str, list[str]]:
    """What a record does not keep of the places in its commands: this run's folder, model and text, as typed."""
    known = {} if run is None else {"RUN": [str(run)]}
    if loading is not None and loading.model:
        known |= {word: loading.words() for word in ("MODEL", loading.model)}
    file = text and (text.text or text.tokens)
    if file:
        known |= {name: [str(file)] for name in (file.name, file.resolve().name)}
    return known


def show(record: Any, json: bool, places: Mapping[str, Sequence[str]] | None = None) -> None:
    """Print what a record says, with these places in its commands, or it as JSON."""
    if json:
        sys.stdout.write(record.to_json())
        return
    from spikesink.report.terminal import print_record

    print_record(record, places=places)


def page_beside(run: Path, page: Path | None = None, places: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write the page of what was just made, by default report.html in its folder, and say where it is; places: those
    in its commands.

    A page that cannot be written never costs the record.
    """
    from spikesink.errors import SpikesinkError
    from spikesink.report.write import write_report

    target = page or run / "report.html"
    try:
        write_report([run], target, places=places)
        print(f"Page: {target}", file=sys.stderr)
    except SpikesinkError as error:
        print(f"No page: {error}", file=sys.stderr)
