"""`spikesink study`: a grid of training runs as a table beside the paper's numbers, with verdicts."""

import sys
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from spikesink.cli import checks, options
from spikesink.cli.report import page_beside
from spikesink.cli.report import show as show_record
from spikesink.errors import InputError, SpikesinkError
from spikesink.train.presets import PRESETS

StudyName = Annotated[
    str | None, typer.Argument(help="A study (see --list) or a YAML file of your own grid.", show_default=False)
]
Preset = Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}, or a recipe file: what the variants change.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each variant.")]
FirstSeed = Annotated[int, typer.Option(min=0, help="Seed of the first; later ones leave out what was seen.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change of the base recipe, e.g. name=nano-long; may be repeated.")
]
Only = Annotated[str | None, typer.Option(help="These variants (with commas) and the baseline alone.")]
ExecutorName = Annotated[str, typer.Option("--executor", help="local or ray.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Cells at a time on this machine; default one a core or GPU.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join (auto, HOST:PORT); default a local one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of a cell; default its share, 1 on Ray.")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of a cell on Ray.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder of the table and of the cells' records.")]
Work = Annotated[Path, typer.Option(help="Folder of the runs themselves: checkpoints, logs, models.")]
RUNNING = ("seeds", "first_seed", "only", "executor", "jobs", "address", "threads", "gpus", "out", "work", "json")
"""Parameters of a run."""
List = Annotated[bool, typer.Option("--list", help="Show the studies, or the variants of one, and run nothing.")]


def study_command(
    context: typer.Context,
    name: StudyName = None,
    preset: Preset = "nano",
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    changes: Changes = None,
    only: Only = None,
    executor: ExecutorName = "local",
    jobs: Jobs = None,
    address: Address = None,
    threads: Threads = None,
    gpus: Gpus = 0,
    out: OutFolder = Path("runs"),
    work: Work = Path("runs"),
    show: List = False,
    json: options.Json = False,
) -> None:
    """Train every variant of a study with several seeds, and say what came apart.

    Goes on where it was stopped: cells whose record is in --out are not run again.
    """
    if show:
        checks.refuse_idle(context, RUNNING, "--list runs nothing")
    if name is None:
        _list_studies(show)
        return
    checks.check_executor(context, executor)
    from spikesink.cli.progress import progress_bar
    from spikesink.study.grid import load_grid
    from spikesink.train.recipe import load_recipe

    base = load_recipe(preset, changes)
    study_name, grid = load_grid(name)
    if show:
        _list_variants(study_name, grid, base)
        return
    chosen = only.split(",") if only else None
    with progress_bar() as progress:
        progress("load torch", 0, 1)
        from spikesink.study.run import Study
        from spikesink.study.table import left_out_lines

        study = Study(study_name, grid, base, out, seeds=seeds, only=chosen, first_seed=first_seed)
        for line in left_out_lines(study.left_out) if chosen is None else ():
            print(options.plain(line), file=sys.stderr)
        runs_on = _executor(executor, jobs, address, threads, gpus)
        progress("load torch", 1, 1)
        record = study.run(runs_on, work, progress)
    show_record(record, json, {"RUNS": [str(out)]})
    print(f"Table: {out / study.title}.md (.json, .csv, .tex); records: {study.records}", file=sys.stderr)
    page_beside(out / f"{study.title}.json", out / f"{study.title}.html")
    failed = sum(row.failed for row in record.rows)
    if failed:
        raise SpikesinkError(
            f"{failed} of {len(study.cells)} cells failed, and the table lacks them ({record.errors[0]}). Their logs "
            f"are in {work / study.title}; the same command tries them again and keeps what is finished."
        )


def _executor(name: str, jobs: int | None, address: str | None, threads: int | None, gpus: float) -> Any:
    from spikesink.study import executors

    if name == "ray":
        return executors.Ray(address, threads or 1, gpus)
    import torch

    return executors.Local(jobs, torch.cuda.device_count(), threads)


def _list_studies(asked: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from spikesink.study import STUDIES
    from spikesink.train.plain_yaml import read_yaml

    if not asked:
        raise InputError(f"Which study? {', '.join(STUDIES)}, or a YAML file; --list shows what they are.")
    table = Table("study", "question", "variants", box=None, pad_edge=False, header_style="bold")
    for study in STUDIES:
        # As plain YAML: to read a grid as variants of a recipe takes torch.
        text = (resources.files("spikesink.study") / "grids" / f"{study}.yaml").read_text(encoding="utf-8")
        grid = read_yaml(text, study)
        table.add_row(study, grid["about"], str(len(grid["variants"])))
    Console(highlight=False).print(table)
    print("spikesink study NAME --list shows the variants.", file=sys.stderr)


def _list_variants(name: str, grid: Any, base: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from spikesink.study.grid import impossible, variant_changes

    console = Console(highlight=False)
    console.print(f"[bold]{escape(name)}[/bold] on {escape(base.name)}: {escape(grid.about)}")
    table = Table("variant", "what", "changes", box=None, pad_edge=False, header_style="bold")
    too_small = impossible(grid, base)
    for variant, choice in grid.variants.items():
        changes = "[baseline]" if variant == grid.baseline else ""
        if variant in too_small:
            changes = f"left out: {too_small[variant]}"
        table.add_row(
            escape(variant), escape(choice.summary),
            escape(changes or "\n".join(variant_changes(base, choice))),
        )  # fmt: skip
    console.print(table)
