"""`spikesink intervene`: what spikes and sinks do in a model, and what that means for int8 and the KV cache."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from spikesink.cli import options
from spikesink.cli.report import page_beside
from spikesink.records import check_output
from spikesink.records.interventions import Interventions

Which = Annotated[
    str, typer.Option(help="Names with commas: interventions, core, spikes, sinks, input, quantisation, kv_cache, all.")
]
HeldOut = Annotated[int, typer.Option(min=1, help="Further sequences that constants are learned on.")]
Draws = Annotated[int, typer.Option(min=1, help="Draws of every random control.")]
Magnitude = Annotated[
    float | None, typer.Option(min=0, help="Magnitude that makes a spike; default a tenth of the largest.")
]
CacheSequences = Annotated[int, typer.Option(min=2, help="Sequences for the KV cache.")]
CacheSeqLen = Annotated[int, typer.Option(min=2, help="Tokens per sequence for the KV cache, documents joined.")]
Sequences = Annotated[int, typer.Option(min=2, help="Sequences to evaluate.")]


def intervene_command(
    model: options.Model = None,
    which: Which = "default",
    text: options.TextFile = None,
    dataset: options.Dataset = None,
    tokens: options.TokenFile = None,
    pack: options.Pack = False,
    sequences: Sequences = 24,
    held_out: HeldOut = 16,
    seq_len: options.SeqLen = 64,
    cache_sequences: CacheSequences = 6,
    cache_seq_len: CacheSeqLen = 512,
    bos: options.Bos = "auto",
    chat_template: options.ChatTemplate = False,
    draws: Draws = 2,
    magnitude: Magnitude = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    epsilon: options.Epsilon = 0.3,
    sink_metric: options.SinkMetric = "sun2026",
    batch_size: options.BatchSize = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    out: options.Out = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Remove spikes and sinks one at a time, with controls of the same size: what does each cost, what stays?

    With --out, a run that was stopped goes on where it was.
    """
    from spikesink.cli.progress import progress_bar

    if out is not None:
        check_output(out, Interventions.file, force=force)
    with progress_bar() as progress:
        from spikesink.analyse.interventions import Options, check_magnitude, dissociate, parse_which
        from spikesink.analyse.scan import check_options
        from spikesink.cli.sources import Source, load_with_progress, read_tokens

        source = Source(text, None, dataset, tokens, pack, sequences + held_out, seq_len, bos, chat_template)
        choice = parse_which(which)
        check_magnitude(magnitude)
        check_options(epsilon, sink_metric)
        accessed = load_with_progress(
            progress, model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        ids = read_tokens(source, accessed)
        long = _long_tokens(source, accessed, cache_sequences, cache_seq_len) if "kv_cache" in choice.parts else None
        folder = options.output_folder(out, json, accessed.name)
        asked = Options(which, held_out, draws, epsilon, sink_metric, magnitude, batch_size)
        record = dissociate(accessed, ids, long_tokens=long, options=asked, folder=folder, progress=progress)
    _finish(record, folder, force, json)


def _long_tokens(source: Any, accessed: Any, sequences: int, seq_len: int) -> Any:
    """Sequences for the KV cache from the same text; None for a file of ids, or a text too short for them."""
    from dataclasses import replace

    from spikesink.cli.sources import read_tokens
    from spikesink.errors import InputError

    if source.tokens is not None:
        return None
    tokens = min(seq_len, accessed.max_positions or seq_len)
    try:
        return read_tokens(replace(source, pack=True, sequences=sequences, seq_len=tokens), accessed)
    except InputError:
        return None


def _finish(record: Interventions, folder: Path | None, force: bool, json: bool) -> None:
    """Write the record, forget the finished passes, and say what came out."""
    from spikesink.analyse.resume import remove_partial

    if folder is not None:
        record.save(folder, force=force)
        remove_partial(folder)
    if json:
        sys.stdout.write(record.to_json())
    else:
        from spikesink.cli.summary_intervene import print_interventions

        print_interventions(record)
    if folder is not None:
        print(f"Record: {folder}", file=sys.stderr)
        page_beside(folder)
