"""What a record of interventions says, made for reading in a terminal of 80 columns."""

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from spikesink.records.interventions import Damage, Estimate, InterventionRow, Interventions, KvCache, Quantisation


def print_interventions(record: Interventions, console: Console | None = None) -> None:
    """The dissociation table, its verdict, quantisation, the KV cache, and what to do."""
    console = console or Console(highlight=False)
    parts: list[RenderableType] = [dissociation_table(record), _refused(record), _verdict(record)]
    if record.quantisation.applicable:
        parts += _quantisation(record.quantisation)
    if record.kv_cache.applicable:
        parts.append(_kv_cache(record.kv_cache))
    parts.append(Text("What to do  ", "bold cyan").append(record.recommendation.text, "default"))
    parts.append(_conditions(record))
    for part in parts:
        if not isinstance(part, Text) or part.plain:
            console.print(part)
            console.print()


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1), min_width=60, pad_edge=False
    )
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def dissociation_table(record: Interventions) -> Table:
    """One row per intervention, its controls below it, dim."""
    table = _table("Remove one, keep the rest", "", "perplexity", "cost in nats", "sinks", "plateau", "tokens")
    for row in record.interventions:
        name = row.name if row.control_of is None else f"  {row.name.split('/')[1].replace('_', ' ')}"
        if row.applicable:
            style = "dim" if row.control_of else "bold" if row.name == "baseline" else ""
            table.add_row(name, *_numbers(row), style=style)
    return table


def _numbers(row: InterventionRow) -> tuple[str, ...]:
    assert row.perplexity and row.loss_difference_nats and row.sink_ratio and row.plateau_kept
    cost = "" if row.name == "baseline" else interval(row.loss_difference_nats)
    tokens = "" if row.spike_tokens is None else f"{row.spike_tokens:.1f}"
    sinks, plateau = f"{row.sink_ratio.value:.0%}", f"{row.plateau_kept.value:.0%}"
    return (number(row.perplexity.value), cost, sinks, plateau, tokens)


def _refused(record: Interventions) -> Text:
    """What does not apply, by reason."""
    reasons: dict[str, list[str]] = {}
    for row in record.interventions:
        if not row.applicable and row.control_of is None:
            reasons.setdefault(row.reason or "", []).append(row.name)
    lines = [f"Does not apply, since {reason}: {', '.join(names)}." for reason, names in reasons.items()]
    return Text("\n".join(lines), "dim")


def _verdict(record: Interventions) -> Text:
    found = record.dissociation
    text = Text("Verdict  ", "bold").append(found.verdict, "bold cyan")
    for answer in (found.sinks_need_spikes, found.spikes_need_sinks, found.constant_suffices):
        text.append(f"\n  {answer.question} ").append(answer.answer, "bold").append(f": {answer.reason}", "dim")
    legend = "cost: mean loss minus the baseline's on the same tokens, with its 95 % interval over sequences; "
    legend += "plateau: largest magnitude between step-up and step-down, of the baseline's; "
    return text.append(f"\n{legend}tokens: how many spike, per sequence", "dim")


def _quantisation(found: Quantisation) -> list[RenderableType]:
    sites = _table("Simulated quantisation, all blocks", "site", "type", "scale per", "perplexity", "cost in nats")
    for row in found.sites:
        scale = row.granularity if row.scales != "static" else f"{row.granularity}, static"
        sites.add_row(
            row.kind, f"int{row.bits}", scale, number(row.perplexity.value), interval(row.loss_difference_nats)
        )
    worst = _table(f"{found.worst_kind}, int8 per tensor: one block alone", "block", "perplexity", "cost in nats")
    for row in sorted(found.blocks, key=lambda row: -row.loss_difference_nats.value)[:5]:
        assert row.blocks
        style = "bold" if row.blocks[0] in found.worst_blocks else "dim"
        worst.add_row(str(row.blocks[0]), *_cost(row), style=style)
    mended = _table("... and what mends it, in all blocks", "remedy", "perplexity", "cost in nats")
    for row in found.remedies:
        mended.add_row(row.remedy or "", *_cost(row))
    parts: list[RenderableType] = [sites, worst, mended]
    return [*parts, Text(found.weights_note, "dim")] if found.weights_note else parts


def _cost(row: Damage) -> tuple[str, str]:
    return number(row.perplexity.value), interval(row.loss_difference_nats)


def _kv_cache(found: KvCache) -> Table:
    title = f"Streaming KV cache, {found.sequences} x {found.tokens} tokens"
    table = _table(title, "cache", "kept", "perplexity", "cost in nats")
    for row in found.table:
        kept = "" if row.keep is None else f"{row.keep}" if row.first == 0 else f"{row.keep}, not the first"
        style = "dim" if row.first else "bold" if row.keep == found.keep else ""
        cost = "" if row.window is None else interval(row.loss_difference_nats)
        table.add_row(
            "full" if row.window is None else str(row.window), kept, number(row.perplexity.value), cost, style=style
        )
    table.caption = found.note
    return table


def _conditions(record: Interventions) -> Text:
    tokens, model, settings = record.provenance.tokens, record.provenance.model, record.provenance.settings
    parts = [
        f"{settings['evaluated_sequences']} x {tokens['seq_len']} tokens of {tokens['source']}",
        f"constants from {settings['held_out_sequences']} other sequences",
        f"BOS {'yes' if tokens.get('bos_added') else 'no'}",
        f"{model.get('dtype')} on {model.get('device')}",
    ]
    if model.get("gguf_quantisation"):
        parts.append(f"weights from {model['gguf_quantisation']}")
    parts.append(f"{record.timing.total_s:.0f} s")
    return Text("Conditions  " + "; ".join(parts), "dim")


def number(value: float) -> str:
    """One decimal below a thousand, in powers of ten from a million on."""
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def interval(estimate: Estimate) -> str:
    """Value [low, high]."""
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
