"""`spikesink export`: what a run recommends, as a file that another tool reads, or as a checkpoint."""

import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spikesink.cli.checks import refuse_idle
from spikesink.cli.options import Loading, grouped
from spikesink.errors import DoesNotApplyError, InputError, OutputError, did_you_mean

if TYPE_CHECKING:
    from spikesink.records.interventions import Interventions

CHECKPOINTS = ("smoothed", "rotated")
"""What is written as a checkpoint of the run's model."""
Run = Annotated[Path, typer.Argument(help="Folder of a run of spikesink intervene, or its interventions.json.")]
Tool = Annotated[
    str,
    typer.Option(
        "--for",
        help="json, json-schema, llm-compressor, torchao, vllm, sglang, gguf, kvpress, streamingllm, executorch, "
        "smoothquant, prefix; or a checkpoint: smoothed, rotated.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="File to write, or folder of a checkpoint; default: print it.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace an existing file, or folder that holds a checkpoint (config.json).")
]


@grouped
def export_command(
    context: typer.Context, run: Run, tool: Tool, loading: Loading, out: Out = None, force: Force = False
) -> None:
    """Write what to leave in high precision, which tokens to keep or put in front, as another tool reads it.

    A checkpoint is made of MODEL, the run's, loaded with the options that the run was made with.
    """
    from spikesink.atomic import write_atomically
    from spikesink.records.interventions import Interventions
    from spikesink.report.export import TOOLS, export, notes

    if tool not in (*TOOLS, *CHECKPOINTS):
        raise InputError(f"Unknown tool '{tool}'{did_you_mean(tool, [*TOOLS, *CHECKPOINTS])}")
    if tool not in CHECKPOINTS:
        why = f"a model is read for {' and '.join(CHECKPOINTS)} alone"
        if loading.model is not None:
            raise InputError(f"'{loading.model}' would change nothing: {why}. Leave it out.")
        refuse_idle(context, [field.name for field in fields(Loading)], why)
    record = Interventions.read(run)
    if out is not None and out.exists() and not force:
        raise OutputError(f"'{out}' exists; give another --out, or --force to replace it.")
    if tool in CHECKPOINTS:
        _checkpoint(record, run, tool, loading, out)
    else:
        content = export(record, tool)
        # Its lines are arguments, among which no note can stand.
        for note in notes(record) if tool == "gguf" else ():
            print(note, file=sys.stderr)
        if not content:
            stays = f"; '{out}' stays as an earlier run left it" if out and out.exists() else ""
            print(
                f"Nothing to leave out: by this run no linear map need stay in high precision, so {tool} needs no "
                f"arguments for it. No file is written{stays}.",
                file=sys.stderr,
            )
            return
        if out is None:
            if b"\0" in content and sys.stdout.isatty():
                raise InputError(f"--for {tool} is no text, and standard output is a terminal; give --out FILE.")
            sys.stdout.buffer.write(content)
            return
        if out.is_dir():
            raise OutputError(f"'{out}' is a folder; {tool} is a file: give its name.")
        if not out.parent.is_dir():
            raise OutputError(f"There is no folder '{out.parent}' to write '{out.name}' into; make it first.")
        write_atomically(out, content)
    print(f"Written: {out}")


def _checkpoint(record: "Interventions", run: Path, tool: str, loading: Loading, out: Path | None) -> None:
    """The run's model with smoothing or rotation in its weights, and its tokenizer."""
    from spikesink.analyse.remedies import stored_largest
    from spikesink.atomic import replace_folder
    from spikesink.cli.progress import progress_bar
    from spikesink.intervene.fold import rotated, smoothed

    if out is None:
        raise InputError(f"--for {tool} writes a folder; say which with --out FOLDER.")
    largest = stored_largest(record.arrays)
    if tool == "smoothed" and not largest:
        raise InputError(
            "The run does not say what enters linear maps; spikesink intervene MODEL --which remedies measures it."
        )
    _check_replaced(out, [run, loading.model, loading.base])
    facts = record.provenance.model
    loading = _as_in(facts, loading)
    with progress_bar() as progress:
        accessed = loading.load(progress, verify=False)
        _check_same(facts, accessed)
        _check_replaced(out, [accessed.path])
        progress("write checkpoint", 0, 1)

        def fill(folder: Path) -> None:
            with smoothed(accessed, largest) if tool == "smoothed" else rotated(accessed):
                accessed.model.save_pretrained(folder)
            if accessed.tokenizer is not None:
                accessed.tokenizer.save_pretrained(folder)

        try:
            replace_folder(out, fill)
        except DoesNotApplyError as reason:
            raise InputError(
                f"No checkpoint is made: {reason}. Instead --for json says what to leave in high precision."
            ) from reason
        progress("write checkpoint", 1, 1)


def _check_replaced(out: Path, kept: Iterable[Path | str | None]) -> None:
    """Refuse to replace what is no checkpoint, or holds something that is needed. Raises OutputError."""
    if not out.exists():
        return
    if not (out / "config.json").is_file():
        raise OutputError(
            f"'{out}' is no checkpoint (it has no config.json), so it is not replaced; give another --out."
        )
    target = out.resolve()
    for each in kept:
        path = None if each is None else Path(each).expanduser().resolve()
        if path is not None and path.exists() and (path == target or target in path.parents):
            raise OutputError(f"'{out}' is, or holds, '{each}', which would be lost; give another --out.")


def _as_in(facts: dict[str, Any], loading: Loading) -> Loading:
    """How to load the run's model, where the command line does not say.

    Raises InputError for what is not it already by its name or its config, before it is loaded.
    """
    from spikesink.atomic import file_sha256
    from spikesink.reach import is_hub_id
    from spikesink.report.conditions import EMBEDDED

    loading.check()
    if loading.model is None and (facts.get("name"), facts.get("gguf_quantisation")) != EMBEDDED:
        raise _another(facts, EMBEDDED[0])
    config = Path(loading.model or "") / "config.json"
    hashed = (facts.get("file_sha256") or {}).get("config.json")
    # An adapter's files are its base's.
    if loading.model and not facts.get("adapter") and hashed and config.is_file() and file_sha256(config) != hashed:
        raise _another(facts, loading.model)
    own = facts.get("adapter") or facts
    pinned = (own.get("commit") or own.get("revision")) if is_hub_id(loading.model) else None
    return replace(loading, dtype=loading.dtype or facts.get("dtype"), revision=loading.revision or pinned)


def _check_same(facts: dict[str, Any], accessed: Any) -> None:
    """Refuse a model that is not the run's. Raises InputError."""
    from spikesink.report.runs import same_weights

    if not same_weights(facts, accessed.provenance):
        raise _another(facts, accessed.name)


def _another(facts: dict[str, Any], name: str) -> InputError:
    adapter = " (--base MODEL, where its adapter was merged into another base than it names)" * bool(
        facts.get("adapter")
    )
    return InputError(
        f"The run is of '{facts.get('name')}', and '{name}' has other files; name it: export RUN MODEL, with the "
        f"options that the run was made with{adapter}."
    )
