"""The command line: one subcommand per file; errors are one message and exit code 2, never a traceback."""

import os
import signal
import sys

import typer

from spikesink.errors import SpikesinkError

app = typer.Typer(
    name="spikesink",
    help="Takes apart massive activations (spikes) and attention sinks in Transformer language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def main() -> None:
    """Spikes and sinks of any Hugging Face causal LM."""


def _version(asked: bool) -> None:
    if asked:
        from spikesink import __version__

        typer.echo(f"spikesink {__version__}")
        raise typer.Exit


def _register() -> None:
    from spikesink.cli.intervene import intervene_command
    from spikesink.cli.scan import scan_command

    app.command("scan")(scan_command)
    app.command("intervene")(intervene_command)


def run() -> None:
    """Entry point of the `spikesink` command."""
    _register()
    # The hub's own progress bars and retries would write over ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app(standalone_mode=True)
    except SpikesinkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        sys.exit(0)
