"""The command line: one subcommand per file; errors are one message and exit code 2, never a traceback."""

import codecs
import io
import json
import os
import signal
import sys
import warnings
from itertools import pairwise
from typing import Annotated, NoReturn

import typer

from spikesink.cli.export import export_command
from spikesink.cli.graft import graft_command
from spikesink.cli.intervene import intervene_command
from spikesink.cli.options import FLAG, plain
from spikesink.cli.report import report_command
from spikesink.cli.scan import scan_command
from spikesink.cli.study import study_command
from spikesink.cli.survey import compare_command, survey_command
from spikesink.cli.train import train_command
from spikesink.cli.verify import verify_command
from spikesink.errors import InputError, OutputError, SpikesinkError

INTERRUPTED = 128 + signal.SIGINT
"""How click leaves after Ctrl-C."""

EXAMPLES = """Examples:

spikesink scan Qwen/Qwen3-0.6B --text mine.txt --out runs/qwen

spikesink intervene Qwen/Qwen3-0.6B --which all --out runs/qwen

spikesink verify mymodel.gguf

spikesink train nano --out runs/nano

spikesink graft MODEL --set arrangement=sandwich --text mine.txt

spikesink study normalisation --preset nano

spikesink survey Qwen/Qwen3-0.6B Qwen/Qwen3-1.7B --bos auto,never

spikesink report runs/qwen --figures figures

spikesink export runs/qwen --for llm-compressor --out recipe.yaml"""
"""A line for each command; blank lines keep them lines."""

OURS = {
    "--limit": "--sequences",
    "--output_path": "--out",
    "--output": "--out",
    "--output_dir": "--out",
    "--model_args": "MODEL and its options",
    "--pretrained": "MODEL",
    "--model": "MODEL, without an option",
    "--tasks": "--text or --dataset",
    "--max_length": "--seq-len",
    "--measures": "--measure",
    "--torch_dtype": "--dtype",
}
"""Options as users of lm-evaluation-harness and transformers type them -> what they are called here."""

STAND_INS = str.maketrans(
    "\N{MULTIPLICATION SIGN}\N{EN DASH}\N{MINUS SIGN}·│•…▲▼✓✗░▒▓▁▂▃▄▅▆▇█", "x--.|*.^v+x:+%_.-=+o%#"
)
"""What the terminal is printed with -> what stands there for an encoding that lacks it."""

app = typer.Typer(
    name="spikesink",
    help="Takes apart massive activations (spikes) and attention sinks in Transformer language models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXAMPLES,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("scan")(scan_command)
app.command("intervene")(intervene_command)
app.command("train")(train_command)
app.command("graft")(graft_command)
app.command("study")(study_command)
app.command("survey")(survey_command)
app.command("compare")(compare_command)
app.command("report")(report_command)
app.command("export")(export_command)
app.command("verify")(verify_command)


def _version(asked: bool) -> None:
    if asked:
        from spikesink import __version__

        typer.echo(f"spikesink {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", metavar=FLAG, callback=_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Spikes and sinks of any Hugging Face causal LM."""


def run() -> None:
    """Entry point of the `spikesink` command."""
    # Bars and warnings of the libraries would write over ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Threads that spin while they wait for each other took three to five times as long on a machine at load 17 (LOG.md,
    # products of the sizes of an FFN). Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Users are told what it is about, not which line of whose code says it.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        _check_stdout()
        _check_arguments(sys.argv[1:])
        app(standalone_mode=True)
    except SpikesinkError as error:
        _leave(str(error))
    except SystemExit as left:
        if left.code == INTERRUPTED:
            print("interrupted; nothing half-written is left.", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader has gone (`spikesink ... | head`); Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _leave("Not enough memory. Give fewer or shorter sequences, a smaller model, or --dtype bfloat16.")
    except OSError as error:
        # Whatever the system refuses is no defect of ours: a full disk, a folder that went away.
        where = f" ('{error.filename}')" if error.filename else ""
        _leave(f"The system refused: {error.strerror or error}{where}.")


def _check_stdout() -> None:
    """Let it take every character, whatever its encoding. Raises OutputError where it is closed."""
    if sys.stdout is None:
        raise OutputError("Standard output is closed, and the result goes there; send it to a file: > result.txt.")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        codecs.register_error("spikesink", _stand_in)
        sys.stdout.reconfigure(errors="spikesink")


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """What an encoding has in place of what it lacks: signs that look alike, or JSON's escapes; in JSON these alone."""
    assert isinstance(error, UnicodeEncodeError), "it is asked of output alone"
    lost = error.object[error.start : error.end]
    return json.dumps(lost if "--json" in sys.argv else lost.translate(STAND_INS))[1:-1], error.end


def _check_arguments(arguments: list[str]) -> None:
    """Refuse what is empty, and an option that other tools have with the name that it has here. Raises InputError."""
    for before, argument in pairwise(["spikesink", *arguments]):
        name, equals, value = argument.partition("=")
        if name in OURS:
            raise InputError(f"No such option: {name}; here it is {OURS[name]}.")
        if not (equals and name.startswith("--")):
            name, value = before, argument
        # A text may be of commas; a list of nothing but commas has no name in it.
        if not (value if name == "--prompt" else value.replace(",", "")).strip():
            raise InputError(
                f"Got '{value}' after {name}, which is empty; expected a value (a variable of the shell that is not "
                "set?). Leave it out for the default."
            )


def _leave(message: str) -> NoReturn:
    print(f"error: {plain(message)}", file=sys.stderr)
    sys.exit(2)
