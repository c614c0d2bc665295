"""What is refused of a command line, or told about it, beyond what each option checks by itself."""

import sys
from collections.abc import Sequence
from typing import Any

import typer

from spikesink.errors import InputError, did_you_mean

IDLE = {
    "--tokens": (
        ("field", "pack", "seq_len", "bos", "chat_template", "cache_sequences", "cache_seq_len"),
        "ids are evaluated as they are",
    ),
    "--prompt": (("field", "pack", "seq_len", "sequences"), "a prompt is one sequence of its own length"),
    None: (("field",), "there is no --text or --dataset that has fields"),
}
"""By source of text, the default one last: parameters that could change nothing, and why."""
EXECUTORS = {
    "local": (("address", "gpus"), "--address and --gpus are of --executor ray"),
    "ray": (("jobs",), "Ray runs as many as its CPUs and GPUs hold"),
}
"""Where cells run; parameters that could change nothing there, and why."""


def stands(context: typer.Context, parameter: str) -> bool:
    """Whether a parameter stands on the command line."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def refuse_idle(context: typer.Context, parameters: Sequence[str], why: str) -> None:
    """Refuse those of these parameters that stand on the command line, since they could change nothing there.

    Raises InputError.
    """
    idle = [one.opts[0] for one in context.command.params if one.name in parameters and stands(context, one.name)]
    if idle:
        raise InputError(
            f"{' and '.join(idle)} would change nothing: {why}. Leave {'it' if len(idle) == 1 else 'them'} out."
        )


def check_choice(option: str, given: str, known: tuple[str, ...]) -> None:
    """Refuse a value that the option does not know. Raises InputError."""
    if given not in known:
        raise InputError(f"Got {option} '{given}'{did_you_mean(given, known)}")


def check_executor(context: typer.Context, name: str) -> None:
    """Refuse an unknown executor, and options of the other one. Raises InputError."""
    check_choice("--executor", name, tuple(EXECUTORS))
    refuse_idle(context, *EXECUTORS[name])


def tell_fewer(tokens: Any, asked: int | None) -> None:
    """Say where there are fewer sequences than the command line asks for; None where it does not."""
    there = len(tokens.ids)
    if asked is not None and there < asked:
        print(f"{tokens.source} makes {there:,} sequences; {asked:,} were asked for.", file=sys.stderr)
