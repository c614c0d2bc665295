"""The command line: one subcommand per file; errors are one message and exit code 2, never a traceback."""

import os
import signal
import sys
from typing import Annotated

import typer

from spikesink.cli.intervene import intervene_command
from spikesink.cli.report import report_command
from spikesink.cli.scan import scan_command
from spikesink.cli.study import study_command
from spikesink.cli.train import train_command
from spikesink.errors import SpikesinkError

INTERRUPTED = 128 + signal.SIGINT
"""How click leaves after Ctrl-C."""

app = typer.Typer(
    name="spikesink",
    help="Takes apart massive activations (spikes) and attention sinks in Transformer language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("scan")(scan_command)
app.command("intervene")(intervene_command)
app.command("train")(train_command)
app.command("study")(study_command)
app.command("report")(report_command)


def _version(asked: bool) -> None:
    if asked:
        from spikesink import __version__

        typer.echo(f"spikesink {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Spikes and sinks of any Hugging Face causal LM."""


def run() -> None:
    """Entry point of the `spikesink` command."""
    # Bars and warnings of the libraries would write over ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        app(standalone_mode=True)
    except SpikesinkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as left:
        if left.code == INTERRUPTED:
            print("interrupted; nothing half-written is left.", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader has gone (`spikesink ... | head`); Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
