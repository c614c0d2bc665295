"""`spikesink train`: a decoder from a recipe, its anatomy next to its loss."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from spikesink.cli import checks, options
from spikesink.cli.report import places, show
from spikesink.train.presets import PRESETS

RecipeName = Annotated[str, typer.Argument(help=f"{', '.join(PRESETS)}, or a YAML file.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change of the recipe, e.g. model.norm=dyt; may be given repeatedly.")
]
RunFolder = Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/NAME.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")]
AllowChanged = Annotated[
    bool, typer.Option("--allow-changed-recipe", help="Resume although the recipe or its text is another one.")
]
ShowPlan = Annotated[bool, typer.Option("--plan", help="Print size, tokens and memory per GPU, and train nothing.")]
ShowRecipe = Annotated[bool, typer.Option("--show", help="Print the whole recipe as YAML, and train nothing.")]


def train_command(
    context: typer.Context,
    recipe: RecipeName = "nano",
    changes: Changes = None,
    out: RunFolder = None,
    resume: Resume = False,
    allow_changed_recipe: AllowChanged = False,
    plan: ShowPlan = False,
    show: ShowRecipe = False,
    json: options.Json = False,
) -> None:
    """Train a decoder from scratch, watching spikes and sinks.

    Runs under torchrun and accelerate launch as well: torchrun --nproc-per-node 2 -m spikesink train nano
    """
    from spikesink.cli.progress import progress_bar
    from spikesink.train.recipe import load_recipe

    if plan or show:
        checks.refuse_idle(
            context, ("out", "resume", "allow_changed_recipe", "json"), "--plan and --show train nothing"
        )
    if not resume:
        checks.refuse_idle(context, ("allow_changed_recipe",), "without --resume a run begins anew")
    chosen = load_recipe(recipe, changes)
    if show:
        sys.stdout.write(chosen.to_yaml())
        return
    if plan:
        _print_plan(chosen)
        return
    folder = out or Path("runs") / options.safe_name(chosen.name)
    # torchrun and accelerate number their processes; only the first speaks.
    main = os.environ.get("RANK", "0") == "0"
    with progress_bar() if main else nullcontext(_silent) as progress:
        progress("load torch", 0, 1)
        from spikesink.train.run import train

        progress("load torch", 1, 1)
        record = train(chosen, folder, resume=resume, allow_changed=allow_changed_recipe, progress=progress)
    _leave_group()
    if main:
        _report(record, folder, json)


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _leave_group() -> None:
    """End the process group that the trainer opened, all ranks together."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _report(record: Any, folder: Path, json: bool) -> None:
    show(record, json, places(folder))
    if not json:
        print(f"Run: {folder}", file=sys.stderr)


def _print_plan(recipe: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from spikesink.train.sharding import count_parameters, plan

    console = Console(highlight=False)
    parameters, _ = count_parameters(recipe)
    training = recipe.training
    console.print(f"[bold]{escape(recipe.name)}[/bold]: {parameters:,} parameters ({parameters / 1e9:.2f} B)")
    per_step = training.batch_size * recipe.data.seq_len
    console.print(f"{training.steps:,} steps of {per_step:,} tokens: {recipe.tokens / 1e9:,.3g} B tokens")
    console.print(f"{6 * parameters * recipe.tokens:.2g} floating-point operations (6 x parameters x tokens)")
    table = Table("GPUs", "states", "gathered", "activations", "total", title="GiB per GPU under FSDP2 (estimate)")
    for gpus in (8, 64, 256):
        need = plan(recipe, gpus)
        row = (need.states, need.gathered, need.activations, need.total)
        table.add_row(str(gpus), *(f"{value:.1f}" for value in row))
    console.print(table)
