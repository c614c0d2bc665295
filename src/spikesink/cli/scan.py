"""`spikesink scan`: where the spikes and sinks of a model are."""

import sys
from typing import Annotated

import typer

from spikesink.cli import options
from spikesink.cli.report import page_beside
from spikesink.records import Anatomy, check_output

Prompt = Annotated[str | None, typer.Option(help="Look at this one text, token by token.")]
Measures = Annotated[str | None, typer.Option("--measure", help="Further measures: names with commas, or all.")]


def scan_command(
    model: options.Model = None,
    text: options.TextFile = None,
    prompt: Prompt = None,
    dataset: options.Dataset = None,
    tokens: options.TokenFile = None,
    pack: options.Pack = False,
    sequences: options.Sequences = 64,
    seq_len: options.SeqLen = 64,
    bos: options.Bos = "auto",
    chat_template: options.ChatTemplate = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    epsilon: options.Epsilon = 0.3,
    sink_metric: options.SinkMetric = "sun2026",
    batch_size: options.BatchSize = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    measures: Measures = None,
    out: options.Out = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Measure spikes, sinks, their life cycle and perplexity, in one streaming pass."""
    from spikesink.cli.progress import progress_bar

    if out is not None:
        check_output(out, Anatomy.file, force=force)
    with progress_bar() as progress:
        from spikesink.analyse.anatomy import parse_names
        from spikesink.analyse.scan import check_options, scan
        from spikesink.cli.sources import Source, load_with_progress, read_tokens

        source = Source(text, prompt, dataset, tokens, pack, sequences, seq_len, bos, chat_template)
        names = parse_names(measures)
        check_options(epsilon, sink_metric)
        accessed = load_with_progress(
            progress, model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        ids = read_tokens(source, accessed)
        record = scan(
            accessed, ids, epsilon=epsilon, sink_metric=sink_metric, batch_size=batch_size, measures=names,
            progress=progress,
        )  # fmt: skip
    folder = options.output_folder(out, json, accessed.name)
    if folder is not None:
        record.save(folder, force=force)
    if json:
        sys.stdout.write(record.to_json())
    else:
        from spikesink.cli.summary import print_prompt, print_summary

        print_summary(record)
        if prompt is not None:
            print_prompt(record, [accessed.token_text(int(token)) for token in ids.ids[0]])
    if folder is not None:
        print(f"Record: {folder}", file=sys.stderr)
        page_beside(folder)
