"""`spikesink graft`: replace one design choice of a pretrained model, heal it, and see what comes back."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from spikesink.cli.options import FLAG, RESULT, TEXT, Json, Text, grouped, safe_name
from spikesink.cli.report import page_beside, places, show
from spikesink.errors import InputError

TRAINING = "The training"

Model = Annotated[
    str | None,
    typer.Argument(
        help="Hub id, checkpoint folder or GGUF file; nothing for the embedded SmolLM2.", show_default=False
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="What to replace, e.g. arrangement=sandwich; or of the recipe, e.g. optimiser.lr=1e-4."),
]
Sequences = Annotated[int, typer.Option(min=2, help="Held-out sequences to evaluate on.", rich_help_panel=TEXT)]
Steps = Annotated[
    int, typer.Option(min=0, help="Of about 1,024 tokens; 0 replaces and trains nothing.", rich_help_panel=TRAINING)
]
Control = Annotated[
    bool, typer.Option("--control/--no-control", help="Train the original alike.", rich_help_panel=TRAINING)
]
ControlFrom = Annotated[
    Path | None,
    typer.Option(help="An earlier graft's folder, whose control was trained alike.", rich_help_panel=TRAINING),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where it was stopped.", rich_help_panel=TRAINING)]
Out = Annotated[Path | None, typer.Option(help="Folder; default runs/graft-MODEL-CHOICE.", rich_help_panel=RESULT)]
Code = Annotated[
    bool,
    typer.Option("--code", help="Put spikesink's own code beside a model of no plain family.", rich_help_panel=RESULT),
]


@dataclass(frozen=True)
class TrainingText(Text):
    """The text to heal and to evaluate on."""

    pack: Annotated[
        bool, typer.Option("--pack", metavar=FLAG, help="Join documents, as is always done here.", rich_help_panel=TEXT)
    ] = False
    seq_len: Annotated[int, typer.Option(min=3, help="Tokens per sequence.", rich_help_panel=TEXT)] = 128
    bos: Annotated[str, typer.Option(help="auto (as the tokenizer does), always or never.", rich_help_panel=TEXT)] = (
        "auto"
    )


@grouped
def graft_command(
    context: typer.Context,
    text: TrainingText,
    model: Model = None,
    changes: Changes = None,
    sequences: Sequences = 64,
    steps: Steps = 100,
    control: Control = True,
    control_from: ControlFrom = None,
    resume: Resume = False,
    out: Out = None,
    code: Code = False,
    json: Json = False,
) -> None:
    """Replace a norm, gate or softmax of a pretrained model, heal it with a short training, and measure what is left.

    The result is a checkpoint that other programs load, and a record beside a control trained alike.
    """
    from spikesink.cli.progress import progress_bar

    if not changes:
        raise InputError("Nothing is replaced; give a choice, e.g. --set arrangement=sandwich.")
    text.check(context)
    name = safe_name("-".join(["graft", safe_name(Path(model).name) if model else "embedded", *changes]))
    folder = out or Path("runs") / name
    with progress_bar() as progress:
        progress("load torch", 0, 1)
        from spikesink.data.tokens import load_token_ids
        from spikesink.graft import GraftSettings, graft_and_heal

        progress("load torch", 1, 1)
        seq_len = load_token_ids(text.tokens).ids.shape[1] if text.tokens is not None else text.seq_len
        settings = GraftSettings(
            model, tuple(changes), text.text, text.dataset, steps, seq_len, sequences, text.bos, text.field,
            text.tokens, text.chat_template,
        )  # fmt: skip
        record = graft_and_heal(
            settings, folder, resume=resume, control=control, control_from=control_from, code=code, progress=progress
        )
    show(record, json, places(folder))
    print(f"Record: {folder}\nModel: {folder / 'model'}", file=sys.stderr)
    page_beside(folder)
