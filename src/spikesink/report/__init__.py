"""The page that a researcher sends to a colleague, and a paper's figures: from records alone, without the model."""

from collections.abc import Sequence
from pathlib import Path

from spikesink.report.document import FORMATS


def write_page(paths: Sequence[Path | str], out: Path | str) -> Path:
    """Write the page of these run folders as one HTML file; returns where it is.

    One model gives its page, several give a page that compares them, a study gives its own. Raises RecordError for a
    folder without a record, OutputError for a file that cannot be written or that is no page of ours.
    """
    from spikesink.report.write import write_report

    write_report([Path(path) for path in paths], Path(out))
    return Path(out)


def write_figures(paths: Sequence[Path | str], folder: Path | str, file_format: str = "svg") -> list[Path]:
    """Write every chart of these runs as a file for a paper; returns the files. Raises InputError, OutputError."""
    from spikesink.report.write import write_report

    return write_report([Path(path) for path in paths], None, Path(folder), file_format)[1]


__all__ = ["FORMATS", "write_figures", "write_page"]
