"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Argument(
        help="Hub id, checkpoint folder or GGUF file; nothing for the embedded SmolLM2.", show_default=False
    ),
]
TextFile = Annotated[Path | None, typer.Option(help="Documents: a .txt (one a line), .jsonl or .parquet (field text).")]
Dataset = Annotated[str | None, typer.Option(help="Hub data set (NAME[@REVISION][:CONFIG[:SPLIT]]), streamed.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="An .npy of token ids (sequences, seq_len), evaluated as they are.")
]
Pack = Annotated[bool, typer.Option("--pack", help="Concatenate documents instead of cutting each.")]
Sequences = Annotated[int, typer.Option(min=1, help="Sequences to measure.")]
SeqLen = Annotated[int, typer.Option(min=2, help="Tokens per sequence.")]
Bos = Annotated[str, typer.Option(help="auto (as the tokenizer does), always or never.")]
ChatTemplate = Annotated[bool, typer.Option("--chat-template", help="Wrap each document as a user's message.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16 or float64; default float32 on CPU, the checkpoint's on a GPU."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, or auto to shard; default a GPU if there is one.")]
Epsilon = Annotated[float, typer.Option(help="Importance above which a key is a sink.")]
SinkMetric = Annotated[str, typer.Option(help="sun2026 or gu2025.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Sequences per forward pass; default about 1024 tokens.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickle weights, which can run code.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the record; default runs/MODEL-TIME, none with --json.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing record.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON and nothing else on stdout.")]


def output_folder(out: Path | None, json: bool, model_name: str) -> Path | None:
    """Where the record goes: `--out`, or runs/MODEL-TIME; nowhere where only JSON was asked for."""
    import time
    from itertools import count

    if out is not None or json:
        return out
    name = f"{safe_name(model_name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    # Two runs in one second, or a clock that was set back: never the folder of another run.
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(folder for folder in (Path("runs") / each for each in names) if not folder.exists())


def plain(text: str) -> str:
    """Text for the terminal: names from a file may hold what a terminal obeys."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def safe_name(name: str) -> str:
    """A model's name as one folder name: a hostile or nested name never leaves the runs folder."""
    kept = "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
    return kept.strip(".-")[:80] or "model"
