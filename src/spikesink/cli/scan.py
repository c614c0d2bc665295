"""`spikesink scan`: where the spikes and sinks of a model are."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from spikesink.errors import InputError
from spikesink.records import check_output

DEFAULT_SEQUENCES = 64


def scan_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Hub id, checkpoint folder or GGUF file; nothing for the embedded SmolLM2.", show_default=False
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Documents: a .txt (one a line), .jsonl or .parquet (field text).")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Look at this one text, token by token.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub data set (NAME[:CONFIG[:SPLIT]]), streamed.")] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="An .npy of token ids (sequences, seq_len), evaluated as they are.")
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Concatenate documents instead of cutting each.")] = False,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences to measure.")] = DEFAULT_SEQUENCES,
    seq_len: Annotated[int, typer.Option(min=2, help="Tokens per sequence.")] = 64,
    bos: Annotated[str, typer.Option(help="auto (as the tokenizer does), always or never.")] = "auto",
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Wrap each document as a user's message.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, or auto to shard.")] = None,
    epsilon: Annotated[float, typer.Option(help="Importance above which a key is a sink.")] = 0.3,
    sink_metric: Annotated[str, typer.Option(help="sun2026 or gu2025.")] = "sun2026",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences per forward pass.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code of the checkpoint.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickle weights, which can run code.")
    ] = False,
    measure: Annotated[str | None, typer.Option(help="Further measures: names with commas, or all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the record; default runs/MODEL-TIME.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing record.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the record as JSON and nothing else.")] = False,
) -> None:
    """Measure spikes, sinks, their life cycle and perplexity, in one streaming pass."""
    if out is not None:
        check_output(out, force=force)
    sources = {"--text": text, "--prompt": prompt, "--dataset": dataset, "--tokens": tokens}
    given = [name for name, source in sources.items() if source is not None]
    if len(given) > 1:
        raise InputError(f"Got {' and '.join(given)}; expected one source of text.")
    names = tuple(name.strip() for name in measure.split(",")) if measure else ()

    from spikesink.cli.progress import progress_bar
    from spikesink.cli.sources import Source, read_tokens
    from spikesink.cli.summary import print_prompt, print_summary

    with progress_bar() as progress:
        from spikesink.access import load
        from spikesink.analyse.anatomy import check_names
        from spikesink.analyse.scan import scan, token_text

        check_names(names)
        source = Source(text, prompt, dataset, tokens, pack, sequences, seq_len, bos, chat_template)
        progress("load model", 0, 1)
        accessed = load(
            model,
            dtype=dtype,
            device=device,
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        progress("load model", 1, 1)
        ids = read_tokens(source, accessed)
        record = scan(
            accessed,
            ids,
            epsilon=epsilon,
            sink_metric=sink_metric,
            batch_size=batch_size,
            measures=names,
            progress=progress,
        )
    if json:
        sys.stdout.write(record.to_json())
    else:
        print_summary(record)
        if prompt is not None:
            print_prompt(record, [token_text(accessed, int(token)) for token in ids.ids[0]])
    folder = out or (None if json else Path("runs") / f"{_safe(accessed.name)}-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder is not None:
        record.save(folder, force=force)
        print(f"Record: {folder}", file=sys.stderr)


def _safe(name: str) -> str:
    """A model's name as one folder name: a hostile or nested name never leaves the runs folder."""
    kept = "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
    return kept.strip(".-")[:80] or "model"
