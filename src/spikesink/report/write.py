"""From folders to files: the page and the figures of these runs, and where they go."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import vl_convert

from spikesink.errors import InputError, OutputError, RecordError, SpikesinkError, did_you_mean, short
from spikesink.limits import panics_raised
from spikesink.records.files import write_files
from spikesink.report.build import runs_document
from spikesink.report.command import Places
from spikesink.report.document import FORMATS, Document
from spikesink.report.drawing import Figure
from spikesink.report.page import render, vl_version

MARK = '<meta name="generator" content="spikesink'
PNG_SCALE = 3
"""Pixels of a PNG per pixel of its chart: about 300 dots per inch at a column's width."""


def write_report(
    paths: Sequence[Path],
    page: Path | None,
    figures: Path | None = None,
    file_format: str = "svg",
    places: Places | None = None,
) -> tuple[Document, list[Path]]:
    """Page and figures of one document, each where a place is given; returns the document and the figures' files.

    places: those in its commands that the runs do not say themselves.
    """
    if file_format not in FORMATS:
        raise InputError(f"Unknown format '{file_format}'{did_you_mean(file_format, FORMATS)}")
    if page is not None:
        _check_target(page)
    with _explained(paths):
        document = runs_document(paths, places)
        html = render(document).encode() if page is not None else b""
        charts = document.figures() if figures is not None else []
    if page is not None:
        _write(page, html)
    return document, [_write_figure(chart, figures, file_format) for chart in charts] if figures is not None else []


@contextmanager
def _explained(paths: Sequence[Path]) -> Iterator[None]:
    """A record may be well-formed and still contradict itself, in more ways than can be asked for one by one."""
    try:
        with panics_raised():
            yield
    except SpikesinkError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {short(error)}"
        raise RecordError(
            f"No page can be made of {', '.join(map(str, paths))} ({reason}): a record contradicts itself. Make it "
            "again with the command that it came from; if that does not help, the fault is spikesink's: report it."
        ) from error


def drawn(figure: Figure, file_format: str) -> bytes:
    """A chart as the bytes of a file, on white, with the paper's fonts and colours."""
    spec = json.dumps(figure.with_rows())
    if file_format == "svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=vl_version()).encode()
    if file_format == "pdf":
        return vl_convert.vegalite_to_pdf(spec, vl_version=vl_version())
    return vl_convert.vegalite_to_png(spec, vl_version=vl_version(), scale=PNG_SCALE)


def _write_figure(figure: Figure, folder: Path, file_format: str) -> Path:
    path = folder / f"{figure.name}.{file_format}"
    _write(path, drawn(figure, file_format))
    return path


def _write(path: Path, content: bytes) -> None:
    write_files(path.parent, {path.name: content}, force=True)


def _check_target(out: Path) -> None:
    """Refuse to replace a file that is no page of ours."""
    if out.is_dir():
        raise OutputError(f"'{out}' is a folder; expected a file, e.g. {out / 'report.html'}.")
    if out.exists() and MARK not in out.read_bytes()[:5000].decode("utf-8", "replace"):
        raise OutputError(f"'{out}' exists and is no page of spikesink's; choose another --out.")
