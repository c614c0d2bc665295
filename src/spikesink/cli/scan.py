"""`spikesink scan`: where the spikes and sinks of a model are."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from spikesink.cli.checks import refuse_idle, tell_fewer
from spikesink.cli.options import BOS, MEASURING, SEQUENCES, TEXT, LoadingOnce, Output, Sinking, Text, grouped
from spikesink.cli.report import page_beside, places, show

if TYPE_CHECKING:
    from spikesink.records import Anatomy
    from spikesink.records.scan import BosPair

WITH_BOS, WITHOUT_BOS = "with-bos", "without-bos"
"""Folders of the two records of `--bos both`."""
WITH_BOTH = (*BOS, "both")
Prompt = Annotated[str | None, typer.Option(help="Look at this one text, token by token.", rich_help_panel=TEXT)]
Sequences = Annotated[
    int | None,
    typer.Option(
        min=1, help="Sequences to measure.", show_default=f"{SEQUENCES}; of --tokens all", rich_help_panel=TEXT
    ),
]
Measures = Annotated[
    str | None,
    typer.Option(
        "--measure",
        metavar="NAMES|all|help",
        help="Further measures, names with commas; help says what each answers.",
        rich_help_panel=MEASURING,
    ),
]


@dataclass(frozen=True)
class ScannedText(Text):
    """The text, which may also be measured with BOS and without."""

    policies: ClassVar[tuple[str, ...]] = WITH_BOTH
    bos: Annotated[
        str,
        typer.Option(
            metavar="|".join(WITH_BOTH),
            help="auto: as the tokenizer does; both: with it and without.",
            rich_help_panel=TEXT,
        ),
    ] = "auto"


@grouped
def scan_command(
    context: typer.Context,
    loading: LoadingOnce,
    text: ScannedText,
    sinking: Sinking,
    output: Output,
    prompt: Prompt = None,
    sequences: Sequences = None,
    measures: Measures = None,
) -> None:
    """Measure spikes, sinks, their life cycle and perplexity, in one streaming pass."""
    from spikesink.cli.progress import progress_bar
    from spikesink.measures import parse_names
    from spikesink.records import Anatomy
    from spikesink.records.scan import BosPair

    if measures == "help":
        others = [one.name for one in context.command.params if one.name and one.name not in ("model", "measures")]
        refuse_idle(context, others, "--measure help prints a table, and measures nothing")
        _print_measures()
        return
    sinking.check()
    names = parse_names(measures)
    text.check(context, prompt)
    loading.check()
    both = text.bos == "both"
    pair = (f"{WITH_BOS}/{Anatomy.file}", f"{WITHOUT_BOS}/{Anatomy.file}", BosPair.file)
    output.check(context, *(pair if both else (Anatomy.file,)))
    with progress_bar() as progress:
        from spikesink.analyse.bos_pair import scan_bos_pair
        from spikesink.analyse.scan import scan

        accessed = loading.load(progress)
        folder = output.folder(accessed.name, Anatomy.file)
        ids = (replace(text, bos="always") if both else text).read(accessed, sequences, prompt)
        tell_fewer(ids, sequences)
        made = (scan_bos_pair if both else scan)(
            accessed, ids, epsilon=sinking.epsilon, sink_metric=sinking.sink_metric, batch_size=sinking.batch_size,
            measures=names, progress=progress,
        )  # fmt: skip
    known = places(folder, loading, text)
    if isinstance(made, tuple):
        _save_pair(made, output, folder, known)
        return
    if folder is not None:
        made.save(folder, force=output.force)
    show(made, output.json, known)
    if prompt is not None and not output.json:
        from spikesink.report.terminal import print_prompt

        print_prompt(made, [accessed.token_text(int(token)) for token in ids.ids[0]])
    if folder is not None:
        print(f"Record: {folder}", file=sys.stderr)
        page_beside(folder, places=known)


def _save_pair(
    pair: "tuple[Anatomy, Anatomy, BosPair]", output: Output, folder: Path | None, known: dict[str, list[str]]
) -> None:
    """A record in a folder for each condition, and their comparison beside them."""
    *records, comparison = pair
    if folder is not None:
        for name, record in zip((WITH_BOS, WITHOUT_BOS), records, strict=True):
            record.save(folder / name, force=output.force)
        comparison.write(folder / comparison.file)
    show(comparison, output.json, known)
    if folder is not None:
        print(f"Records: {folder / WITH_BOS}, {folder / WITHOUT_BOS}, {folder / comparison.file}", file=sys.stderr)


def _print_measures() -> None:
    """Every further measure and the question it answers."""
    from rich.console import Console
    from rich.table import Table

    from spikesink.measures import measures

    table = Table("measure", "what it answers", box=None, pad_edge=False, header_style="bold")
    for measure in measures().values():
        table.add_row(measure.name, measure.question)
    Console(highlight=False).print(table)
