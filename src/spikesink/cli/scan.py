"""`spikesink scan`: where the spikes and sinks of a model are."""

import sys
from typing import Annotated

import typer

from spikesink.cli.options import MEASURING, TEXT, Loading, Output, Sinking, Text, grouped
from spikesink.cli.report import page_beside
from spikesink.records import Anatomy, check_output

Prompt = Annotated[str | None, typer.Option(help="Look at this one text, token by token.", rich_help_panel=TEXT)]
Sequences = Annotated[int, typer.Option(min=1, help="Sequences to measure.", rich_help_panel=TEXT)]
Measures = Annotated[
    str | None,
    typer.Option("--measure", help="Further measures: names with commas, or all.", rich_help_panel=MEASURING),
]


@grouped
def scan_command(
    loading: Loading,
    text: Text,
    sinking: Sinking,
    output: Output,
    prompt: Prompt = None,
    sequences: Sequences = 64,
    measures: Measures = None,
) -> None:
    """Measure spikes, sinks, their life cycle and perplexity, in one streaming pass."""
    from spikesink.cli.progress import progress_bar
    from spikesink.measures import parse_names

    text.check(prompt)
    names = parse_names(measures)
    if output.out is not None:
        check_output(output.out, Anatomy.file, force=output.force)
    with progress_bar() as progress:
        from spikesink.analyse.scan import check_options, scan
        from spikesink.cli.sources import read_tokens

        check_options(sinking.epsilon, sinking.sink_metric)
        accessed = loading.load(progress)
        ids = read_tokens(text, accessed, sequences, prompt)
        record = scan(
            accessed, ids, epsilon=sinking.epsilon, sink_metric=sinking.sink_metric, batch_size=sinking.batch_size,
            measures=names, progress=progress,
        )  # fmt: skip
    folder = output.folder(accessed.name)
    if folder is not None:
        record.save(folder, force=output.force)
    if output.json:
        sys.stdout.write(record.to_json())
    else:
        from spikesink.report.terminal import print_prompt, print_record

        print_record(record)
        if prompt is not None:
            print_prompt(record, [accessed.token_text(int(token)) for token in ids.ids[0]])
    if folder is not None:
        print(f"Record: {folder}", file=sys.stderr)
        page_beside(folder)
