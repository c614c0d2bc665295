"""`spikesink survey` and `spikesink compare`: many models measured alike, as an atlas; and what differs between two."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from spikesink.cli.checks import check_choice, check_executor, refuse_idle
from spikesink.cli.options import BOS, MEASURING, MODEL, RESULT, TEXT, Json, Sinking, grouped, plain
from spikesink.cli.report import page_beside, report_command, show
from spikesink.errors import InputError, SpikesinkError, did_you_mean

CHAT = {"off": False, "on": True}
Models = Annotated[
    list[str] | None,
    typer.Argument(help="Hub ids, folders, GGUF files, `embedded`; or one YAML file of a survey.", show_default=False),
]
Revisions = Annotated[
    str | None,
    typer.Option(help="Of every model, with commas; all for every branch, tag or checkpoint.", rich_help_panel=MODEL),
]
Dtypes = Annotated[
    str | None, typer.Option("--dtype", help="Names with commas; default as in scan.", rich_help_panel=MODEL)
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code of checkpoints.", rich_help_panel=MODEL)]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickle weights.", rich_help_panel=MODEL)]
Device = Annotated[str | None, typer.Option(help="As in scan.", rich_help_panel=MODEL)]
Keep = Annotated[
    bool, typer.Option("--keep/--no-keep", help="Leave downloaded weights in the hub's cache.", rich_help_panel=MODEL)
]
TextFiles = Annotated[
    list[str] | None,
    typer.Option("--text", help="A file of documents or ids (.npy), or default; repeat it.", rich_help_panel=TEXT),
]
Datasets = Annotated[
    list[str] | None, typer.Option("--dataset", help="A hub data set; may be repeated.", rich_help_panel=TEXT)
]
Bos = Annotated[str | None, typer.Option("--bos", help="auto, always, never, with commas.", rich_help_panel=TEXT)]
SeqLen = Annotated[str | None, typer.Option("--seq-len", help="Lengths with commas.", rich_help_panel=TEXT)]
Chat = Annotated[str | None, typer.Option("--chat-template", help="off, on, or off,on.", rich_help_panel=TEXT)]
Sequences = Annotated[int | None, typer.Option(min=1, help="Sequences of a cell.", rich_help_panel=TEXT)]
Measures = Annotated[
    str | None,
    typer.Option("--measure", help="As in scan; interventions, rounding.", rich_help_panel=MEASURING),
]
ExecutorName = Annotated[str, typer.Option("--executor", help="local or ray.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Models at a time; default one a GPU, two on CPUs.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; default a local one.")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of a model on Ray.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the survey.", rich_help_panel=RESULT)]


@grouped
def survey_command(
    context: typer.Context,
    sinking: Sinking,
    models: Models = None,
    revisions: Revisions = None,
    dtype: Dtypes = None,
    trust_remote_code: Trust = False,
    allow_pickle: Pickle = False,
    device: Device = None,
    keep: Keep = True,
    text: TextFiles = None,
    dataset: Datasets = None,
    bos: Bos = None,
    seq_len: SeqLen = None,
    chat_template: Chat = None,
    sequences: Sequences = None,
    measures: Measures = None,
    executor: ExecutorName = "local",
    jobs: Jobs = None,
    address: Address = None,
    gpus: Gpus = 0,
    out: Out = Path("runs/survey"),
    json: Json = False,
) -> None:
    """Measure many models, checkpoints, texts and conditions alike, and draw the atlas of them.

    Goes on where it was stopped; a model that is refused is a row with its reason.
    """
    from spikesink.cli.progress import progress_bar

    sinking.check()
    check_executor(context, executor)
    for policy in _split(bos):
        check_choice("--bos", policy, BOS)
    with progress_bar() as progress:
        progress("load torch", 0, 1)
        from spikesink.survey.run import Survey

        progress("load torch", 1, 1)
        given = {
            "texts": [*(text or []), *({"dataset": name} for name in dataset or [])], "bos": _split(bos),
            "dtype": _split(dtype), "seq_len": _lengths(seq_len), "chat_template": _chat(chat_template),
            "measures": _split(measures), "sequences": sequences,
        }  # fmt: skip
        spec = _spec(models or [], _split(revisions), {name: value for name, value in given.items() if value})
        loading = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "device": device}
        survey = Survey(spec, out, keep=keep, loading=loading, sinks=asdict(sinking))
        record = survey.run(_executor(executor, jobs, address, gpus, survey), progress)
    show(record, json, {"SURVEY": [str(out)]})
    print(f"Survey: {out / record.file} (survey.csv beside it); records: {out / 'runs'}", file=sys.stderr)
    page_beside(out, out / "atlas.html")
    # The folder may have rows of other surveys, which this command does not try again.
    own = [row for row in record.rows if row.key in survey.keys]
    failed = [row for row in own if row.status == "failed"]
    if failed:
        raise SpikesinkError(
            f"{len(failed)} of {len(own)} cells failed ({plain(failed[0].label)}: {failed[0].error}) The same "
            "command tries them again and keeps what is finished."
        )


def compare_command(
    context: typer.Context,
    one: Annotated[Path, typer.Argument(help="Folder of a run or of a survey.")],
    others: Annotated[list[Path], typer.Argument(help="One more survey, or further runs.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; default compare.html here.")] = None,
    json: Json = False,
) -> None:
    """Set runs side by side, or say what moved from one survey to another beyond its interval."""
    from spikesink.records.files import run_folder
    from spikesink.records.survey import SurveyRecord, moves
    from spikesink.report.build import runs_document
    from spikesink.report.terminal import print_document

    folders = [run_folder(path, SurveyRecord.file) for path in (one, *others)]
    surveys = [folder for folder in folders if (folder / SurveyRecord.file).is_file()]
    if json and len(surveys) == len(folders) == 2:
        refuse_idle(context, ("out",), "--json of two surveys prints what moved, and writes no page")
        before, after = (SurveyRecord.read_file(folder / SurveyRecord.file) for folder in surveys)
        import json as json_module

        sys.stdout.write(json_module.dumps([move.model_dump() for move in moves(before, after)], indent=1) + "\n")
        return
    if not json:
        print_document(runs_document(folders))
    report_command(context, folders, out=out or Path("compare.html"), json=json)


def _spec(models: list[str], revisions: list[str], given: dict[str, Any]) -> Any:
    """The survey of a YAML file with the command's options in their place, or of a list of models."""
    from spikesink.survey.grid import Spec, read_spec

    content: dict[str, Any] = {"models": models}
    if len(models) == 1 and models[0].lower().endswith((".yaml", ".yml")):
        content = read_spec(Path(models[0])).model_dump()
    content |= given
    # What a model of the file says for itself gives way as well.
    own: dict[str, Any] = {name: None for name in ("texts", "dtype") if name in given}
    own |= {"revisions": revisions} if revisions else {}
    if own:
        named = [{"model": model} if isinstance(model, str) else model for model in content["models"]]
        content["models"] = [{**model, **own} for model in named]
    return Spec.parse(content)


def _split(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


def _lengths(text: str | None) -> list[int]:
    try:
        lengths = [int(part) for part in _split(text)]
    except ValueError:
        lengths = [0]
    if any(length < 2 for length in lengths):
        raise InputError(f"Got --seq-len '{text}'; expected whole numbers from 2 on with commas, e.g. 64,256.")
    return lengths


def _chat(text: str | None) -> list[bool]:
    for name in _split(text):
        if name not in CHAT:
            raise InputError(f"Got --chat-template '{name}'{did_you_mean(name, list(CHAT))}")
    return [CHAT[name] for name in _split(text)]


def _executor(name: str, jobs: int | None, address: str | None, of_one: float, survey: Any) -> Any:
    from spikesink.study import executors
    from spikesink.survey.cell import SURVEYED
    from spikesink.survey.plan import gpus

    if name == "ray":
        return executors.Ray(address, 1, of_one, kind=SURVEYED)
    import os

    at_once = jobs or gpus() or min(2, os.cpu_count() or 1)
    return executors.Local(at_once, gpus(), kind=SURVEYED, admit=survey.room.taken)
