"""`spikesink export`: what a run recommends, as a file that another tool reads."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from spikesink.errors import OutputError

Run = Annotated[Path, typer.Argument(help="Folder of a run of spikesink intervene.")]
Tool = Annotated[str, typer.Option("--for", help="json, llm-compressor or kvpress.")]
Out = Annotated[Path | None, typer.Option("--out", help="File to write; default: print it.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


def export_command(run: Run, tool: Tool, out: Out = None, force: Force = False) -> None:
    """Write which linear maps to leave in high precision, or the first tokens to keep, as another tool reads it."""
    from spikesink.atomic import write_atomically
    from spikesink.records.interventions import Interventions
    from spikesink.report.export import export

    content = export(Interventions.read(run), tool)
    if out is None:
        sys.stdout.write(content)
        return
    if out.exists() and not force:
        raise OutputError(f"'{out}' exists; give another --out, or --force to replace it.")
    write_atomically(out, content.encode())
    print(f"Written: {out}")
