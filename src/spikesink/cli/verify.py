"""`spikesink verify`: may this model's numbers be believed, and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from spikesink.cli.options import RESULT, Loading, Output, grouped
from spikesink.cli.report import places, show

SeqLen = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of the longest check; default 512, more where attention has windows."),
]


@dataclass(frozen=True)
class Written(Output):
    """Where the record goes, if anywhere."""

    out: Annotated[
        Path | None, typer.Option(help="Folder for the record; without it none is written.", rich_help_panel=RESULT)
    ] = None


@grouped
def verify_command(context: typer.Context, loading: Loading, output: Written, seq_len: SeqLen = None) -> None:
    """Check every layer against the model's own arithmetic; exit 0 if all holds, 2 if the model is refused."""
    from spikesink.cli.progress import progress_bar
    from spikesink.records import VerificationRecord

    loading.check()
    output.check(context, VerificationRecord.file)
    with progress_bar() as progress:
        from spikesink.access.verify import require_verified, verify_all

        accessed = loading.load(progress)
        record = verify_all(accessed, tokens=seq_len, progress=progress)
    if output.out is not None:
        record.save(output.out, force=output.force)
    show(record, output.json, places(None, loading))
    require_verified(record)
