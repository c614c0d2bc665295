"""`spikesink export`: what a run recommends, as a file that another tool reads, or as a checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spikesink.errors import InputError, OutputError, did_you_mean

if TYPE_CHECKING:
    from spikesink.records.interventions import Interventions

CHECKPOINTS = ("smoothed", "rotated")
"""What is written as a checkpoint of the run's model."""
Run = Annotated[Path, typer.Argument(help="Folder of a run of spikesink intervene.")]
Tool = Annotated[
    str,
    typer.Option(
        "--for",
        help="json, json-schema, llm-compressor, torchao, vllm, sglang, gguf, kvpress, streamingllm, executorch, "
        "smoothquant, prefix; or a checkpoint: smoothed, rotated.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="File to write, or folder of a checkpoint; default: print it.")]
Model = Annotated[
    str | None,
    typer.Argument(help="The run's model, for a checkpoint; nothing for the embedded one.", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file or folder.")]


def export_command(run: Run, tool: Tool, model: Model = None, out: Out = None, force: Force = False) -> None:
    """Write what to leave in high precision, which tokens to keep or put in front, as another tool reads it."""
    from spikesink.atomic import write_atomically
    from spikesink.records.interventions import Interventions
    from spikesink.report.export import TOOLS, export

    if tool not in (*TOOLS, *CHECKPOINTS):
        raise InputError(f"Unknown tool '{tool}'{did_you_mean(tool, [*TOOLS, *CHECKPOINTS])}")
    if tool not in CHECKPOINTS and model is not None:
        raise InputError(
            f"'{model}' would change nothing: a model is read for {' and '.join(CHECKPOINTS)} alone. Leave it out."
        )
    record = Interventions.read(run)
    if out is not None and out.exists() and not force:
        raise OutputError(f"'{out}' exists; give another --out, or --force to replace it.")
    if tool in CHECKPOINTS:
        _checkpoint(record, tool, model, out)
    else:
        content = export(record, tool)
        if out is None:
            sys.stdout.buffer.write(content)
            return
        write_atomically(out, content)
    print(f"Written: {out}")


def _checkpoint(record: "Interventions", tool: str, model: str | None, out: Path | None) -> None:
    """The run's model with smoothing or rotation in its weights, and its tokenizer."""
    from spikesink.access import load
    from spikesink.analyse.remedies import stored_largest
    from spikesink.atomic import replace_folder
    from spikesink.intervene.fold import rotated, smoothed

    if out is None:
        raise InputError(f"--for {tool} writes a folder; say which with --out FOLDER.")
    largest = stored_largest(record.arrays)
    if tool == "smoothed" and not largest:
        raise InputError(
            "The run does not say what enters linear maps; spikesink intervene MODEL --which remedies measures it."
        )
    facts = record.provenance.model
    accessed = load(model, dtype=facts.get("dtype"), revision=facts.get("revision"))
    if any(accessed.provenance.get(name) != facts.get(name) for name in ("file_sha256", "commit")):
        raise InputError(
            f"The run is of '{facts.get('name')}', and '{accessed.name}' has other files; name it: export RUN MODEL."
        )

    def fill(folder: Path) -> None:
        with smoothed(accessed, largest) if tool == "smoothed" else rotated(accessed):
            accessed.model.save_pretrained(folder)
        if accessed.tokenizer is not None:
            accessed.tokenizer.save_pretrained(folder)

    replace_folder(out, fill)
