"""What a record says, made for reading in a terminal."""

import math
from collections import Counter

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spikesink.cli.summary_anatomy import LABEL_WIDTH, anatomy_blocks
from spikesink.records import Anatomy, SinkHead

BARS = " ▁▂▃▄▅▆▇█"
SHADES = " ·░▒▓█"
MAP_ROWS = 32
"""Rows of the sink map; models with more heads show the strongest of several in one row."""


def print_summary(record: Anatomy, console: Console | None = None) -> None:
    """The summary of `spikesink scan`: spike, life cycle, sinks, perplexity, conditions."""
    console = console or Console(highlight=False)
    parts = [_headline(record), _lifecycle(record), _sink_map(record), *anatomy_blocks(record), _conditions(record)]
    spaced = [piece for part in parts for piece in (Text(), part)][1:]
    console.print(
        Panel(
            Group(*spaced),
            title=f"[bold]{_plain(record.provenance.model.get('name', 'model'))}[/bold]",
            title_align="left",
            border_style="cyan",
        )
    )


def _headline(record: Anatomy) -> Table:
    summary = record.summary
    table = _grid()
    spike = f"{_number(summary.spike)} in channel {summary.spike_channel} after block {summary.spike_block}"
    if summary.has_spikes:
        table.add_row("Spike", f"{spike}; {summary.max_over_median:,.0f} x the median")
        table.add_row("  tokens", _spike_tokens(record))
        table.add_row("  channels", _listed(summary.spike_channels))
        table.add_row(
            "  made by",
            _blocks(record, summary.step_up_blocks) + "; taken away by " + _blocks(record, summary.step_down_blocks),
        )
    else:
        table.add_row("Spike", _no_spikes(record))
        table.add_row("  largest", spike)
    if summary.has_sinks:
        heads = f"{summary.sink_head_count} of {summary.head_count} heads"
        table.add_row(
            "Sinks",
            f"sink ratio {summary.sink_ratio:.1%} ({record.sinks.metric}, epsilon {record.sinks.epsilon:g}); {heads}",
        )
    else:
        first, uniform = record.sinks.first_key_importance, record.sinks.uniform_first_key
        table.add_row("Sinks", f"none: the first token gets {first:.3g} of attention, uniform would be {uniform:.3g}")
    others = f"sun2026 {summary.sink_ratio_sun2026:.1%}, gu2025 {summary.sink_ratio_gu2025:.1%}"
    others += f", first key (gu2025) {summary.sink1_gu2025:.1%}"
    table.add_row("  metrics", others)
    if record.sinks.virtual_mass is not None:
        table.add_row("  virtual keys", f"hold {record.sinks.virtual_mass:.1%} of attention, counted apart")
    table.add_row("Perplexity", _number(summary.perplexity))
    return table


def _no_spikes(record: Anatomy) -> str:
    verdict = record.spikes
    return (
        f"none: the largest value is up to {record.summary.max_over_median:.3g} x the median and up to "
        f"{verdict.token_ratio:.3g} x its own token's; spikes need {verdict.max_over_median_min:g} and "
        f"{verdict.token_ratio_min:g} after one block"
    )


def _listed(items: list[int], most: int = 12) -> str:
    return ", ".join(map(str, items[:most])) + (f", ... {len(items)} in all" if len(items) > most else "")


def _grid() -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", width=LABEL_WIDTH)
    table.add_column()
    return table


def _blocks(record: Anatomy, blocks: list[int]) -> str:
    if not blocks:
        return "no single block"
    kind = {block.block: block.kind.replace("ffn", "FFN") for block in record.lifecycle.blocks}
    kinds = ", ".join(f"{block} ({kind[block]})" for block in blocks)
    return f"block{'s' if len(blocks) > 1 else ''} {kinds}"


def _spike_tokens(record: Anatomy) -> Text:
    """Spike tokens as text with how often, the first position apart."""
    listed = record.summary.spike_tokens
    first = sum(token.position == 0 for token in listed)
    later = Counter(token.text for token in listed if token.position > 0)
    parts = [f"{record.spikes.token_count} in all"]
    if first:
        examples = [repr(token.text) for token in listed if token.position == 0][:3]
        parts.append(f"first token of {first} sequences ({', '.join(examples)}{', ...' if first > 3 else ''})")
    parts += [f"{_plain(repr(text))} x {count} later" for text, count in later.most_common(4)]
    return Text("; ".join(parts))


def _lifecycle(record: Anatomy) -> Table:
    """Largest magnitude after each block on a logarithmic scale, with the step blocks marked."""
    residuals = [block for block in record.lifecycle.blocks if block.resid_top3]
    values = [block.resid_top3[0].value for block in residuals if block.resid_top3]
    low, high = math.log10(max(min(values), 1e-3)), math.log10(max(max(values), 1e-3))
    span = max(high - low, 1e-9)
    curve, marks = Text(style="cyan"), Text()
    for block, value in zip(residuals, values, strict=True):
        level = (math.log10(max(value, 1e-3)) - low) / span
        curve.append(BARS[1 + round(level * (len(BARS) - 2))])
        up, down = block.block in record.summary.step_up_blocks, block.block in record.summary.step_down_blocks
        marks.append("▲" if up else "▼" if down else " ", style="green" if up else "red")
    table = _grid()
    table.add_row("Life cycle", curve)
    table.add_row("", marks)
    course = " to ".join(map(_number, (values[0], max(values), values[-1])))
    table.add_row(
        "", Text(f"largest |h| after blocks {residuals[0].block}-{residuals[-1].block}: {course} (log scale)", "dim")
    )
    return table


def _sink_map(record: Anatomy) -> Table:
    """Head x layer map: shade = largest importance over the first half of the keys, sink heads in colour."""
    layers: dict[int, list[SinkHead]] = {}
    for head in record.sinks.heads:
        layers.setdefault(head.block, []).append(head)
    n_heads = max(len(heads) for heads in layers.values())
    per_row = math.ceil(n_heads / MAP_ROWS)
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", width=LABEL_WIDTH)
    table.add_column(justify="right", style="dim")
    table.add_column(no_wrap=True)
    for start in range(0, n_heads, per_row):
        row = Text()
        for heads in layers.values():
            group = heads[start : start + per_row]
            strongest = max((head.max_importance for head in group), default=0.0)
            shade = SHADES[min(len(SHADES) - 1, int(strongest * len(SHADES)))]
            row.append(shade, style="magenta" if any(head.is_sink for head in group) else "dim")
        table.add_row("Sink heads" if start == 0 else "", f"{start}", row)
    blocks = list(layers)
    legend = f"head (down) by attention block {blocks[0]} to {blocks[-1]} (across)"
    table.add_row("", "", Text(f"{legend};", style="dim"))
    table.add_row("", "", Text(f"shade = importance {' '.join(SHADES[1:])} up to 1, colour = sink head", style="dim"))
    return table


def _conditions(record: Anatomy) -> Text:
    tokens, model, settings = record.provenance.tokens, record.provenance.model, record.provenance.settings
    shape = f"{tokens.get('sequences')} x {tokens.get('seq_len')} tokens of {tokens.get('source')}"
    parts = [
        shape,
        f"BOS {'yes' if tokens.get('bos_added') else 'no'}",
        f"{model.get('dtype')} on {model.get('device')}",
    ]
    if model.get("gguf_quantisation"):
        parts.append(f"weights from {model['gguf_quantisation']}")
    parts.append(f"attention {settings.get('attention')}")
    parts.append(
        f"{record.timing.total_s:.0f} s (load {record.timing.load_s:.0f}, forward {record.timing.forward_s:.0f})"
    )
    return Text("Conditions  " + "; ".join(parts), style="dim")


def print_prompt(record: Anatomy, texts: list[str], console: Console | None = None) -> None:
    """One text, its tokens in a row: spike tokens bold red, tokens that sink heads attend to underlined."""
    console = console or Console(highlight=False)
    spikes = {token.position for token in record.summary.spike_tokens}
    importance = record.arrays["key_importance"]
    limit = record.sinks.importance_min
    heads = (importance > limit).sum((0, 1))
    row = Text()
    for position, text in enumerate(texts):
        style = "bold red" if position in spikes else ""
        style += " underline" if heads[position] else ""
        row.append(text.replace("\n", "⏎"), style=style.strip() or None)
        row.append("│", style="dim")
    console.print(row)
    found = [f"{texts[position]!r} by {int(heads[position])} heads" for position in heads.nonzero()[0]]
    sinks = "; ".join(found) if found else f"none above {limit:.2g} (a short text needs a higher importance)"
    console.print(Text(f"red = spike token; underlined = sink token: {sinks}", style="dim"))


def _number(value: float) -> str:
    """Four digits that read well: 26,665 rather than 2.667e+04."""
    return f"{value:,.0f}" if 1000 <= value < 1e9 else f"{value:.4g}"


def _plain(text: str) -> str:
    """Text that rich does not read as markup."""
    return text.replace("[", "\\[")
