"""`spikesink intervene`: what spikes and sinks do in a model, and what that means for int8 and the KV cache."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spikesink.cli.checks import refuse_idle, stands, tell_fewer
from spikesink.cli.options import LoadingOnce, Output, Sinking, Text, grouped
from spikesink.cli.report import page_beside, places, show

if TYPE_CHECKING:
    from spikesink.records.interventions import Interventions

Which = Annotated[
    str,
    typer.Option(
        help="Names with commas: interventions, core, spikes, sinks, input, quantisation, kv_cache, formats, remedies, "
        "all, none."
    ),
]
DoseOption = Annotated[
    list[str] | None,
    typer.Option("--dose", help="Sweep a strength: default, NAME, or NAME=LEVELS with commas; again for more."),
]
BudgetOption = Annotated[
    float | None,
    typer.Option("--budget", help="Nats that int8 may cost: the smallest set of measures for it; adds quantisation."),
]
HeldOut = Annotated[int, typer.Option(min=1, help="Further sequences that constants are learned on.")]
Draws = Annotated[int, typer.Option(min=1, help="Draws of every random control.")]
Magnitude = Annotated[
    float | None, typer.Option(min=0, help="Magnitude that makes a spike; default a tenth of the largest.")
]
CacheSequences = Annotated[int, typer.Option(min=2, help="Sequences for the KV cache.")]
CacheSeqLen = Annotated[int, typer.Option(min=2, help="Tokens per sequence for the KV cache, documents joined.")]
CACHE = ("cache_sequences", "cache_seq_len")
"""Parameters of the KV cache."""
EVALUATED = 24
"""Sequences of a text, where the command line does not say how many."""
Sequences = Annotated[
    int | None,
    typer.Option(min=2, help="Sequences to evaluate.", show_default=f"{EVALUATED}; of --tokens all but the held-out"),
]


@grouped
def intervene_command(
    context: typer.Context,
    loading: LoadingOnce,
    text: Text,
    sinking: Sinking,
    output: Output,
    which: Which = "default",
    dose: DoseOption = None,
    budget: BudgetOption = None,
    sequences: Sequences = None,
    held_out: HeldOut = 16,
    cache_sequences: CacheSequences = 6,
    cache_seq_len: CacheSeqLen = 512,
    draws: Draws = 2,
    magnitude: Magnitude = None,
) -> None:
    """Remove spikes and sinks one at a time, with controls of the same size: what does each cost, what stays?

    With --out, a run that was stopped goes on where it was.
    """
    from spikesink.cli.progress import progress_bar
    from spikesink.records.interventions import Interventions

    sinking.check()
    text.check(context)
    loading.check()
    output.check(context, Interventions.file)
    with progress_bar() as progress:
        from spikesink.analyse.dose import parse_dose
        from spikesink.analyse.interventions import check_magnitude, dissociate, parse_which

        choice = parse_which(which, budget)
        parse_dose(dose or ())
        check_magnitude(magnitude)
        if not choice.interventions:
            refuse_idle(context, ("draws",), "no intervention is asked for, and a sweep takes one draw")
        if "kv_cache" not in choice.parts:
            refuse_idle(context, CACHE, "the KV cache is asked for by --which kv_cache, or all")
        accessed = loading.load(progress)
        folder = output.folder(accessed.name, Interventions.file)
        wanted = sequences and sequences + held_out
        ids = text.read(accessed, wanted, default=EVALUATED + held_out)
        tell_fewer(ids, wanted)
        long = None
        if "kv_cache" in choice.parts:
            asked = [name for name in CACHE if stands(context, name)]
            long = _long_tokens(text, accessed, cache_sequences, cache_seq_len, asked)
        record = dissociate(
            accessed, ids, which=which, dose=dose or (), budget=budget, held_out=held_out, draws=draws,
            epsilon=sinking.epsilon, sink_metric=sinking.sink_metric, magnitude=magnitude,
            batch_size=sinking.batch_size, long_tokens=long, folder=folder, progress=progress,
        )  # fmt: skip
    _finish(record, folder, output, places(folder, loading, text))


def _long_tokens(source: Text, accessed: Any, sequences: int, seq_len: int, asked: Sequence[str] = ()) -> Any:
    """Sequences for the KV cache from the same text; None for a file of ids, or a text too short, which is told.

    Beyond the model's positions where they are rotations; learned ones end. asked: which of CACHE stand on the command
    line. Raises InputError where a text or the positions are too few for these.
    """
    from dataclasses import replace

    from spikesink.access.rotary import rotates
    from spikesink.errors import InputError

    if source.tokens is not None:
        return None
    limit = accessed.max_positions
    beyond = limit is not None and seq_len > limit and rotates(accessed)
    tokens = seq_len if limit is None or beyond or "cache_seq_len" in asked else min(seq_len, limit)
    try:
        made = replace(source, pack=True, seq_len=tokens).read(accessed, sequences, beyond=beyond)
    except InputError as error:
        reason = f"KV cache: {error}".replace("--seq-len", "--cache-seq-len")
        if asked:
            raise InputError(reason) from error
        print(f"{reason} Until then it is measured on the sequences that are evaluated.", file=sys.stderr)
        return None
    if "cache_sequences" in asked:
        tell_fewer(made, sequences)
    return made


def _finish(record: "Interventions", folder: Path | None, output: Output, known: dict[str, list[str]]) -> None:
    """Write the record, forget the finished passes, and say what came out."""
    from spikesink.analyse.interventions import identity
    from spikesink.analyse.resume import remove_partial

    if folder is not None:
        record.save(folder, force=output.force)
        remove_partial(folder, identity(record.provenance))
    show(record, output.json, known)
    if folder is not None:
        print(f"Record: {folder}", file=sys.stderr)
        page_beside(folder, places=known)
