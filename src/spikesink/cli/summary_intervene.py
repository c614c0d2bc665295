"""What a record of interventions says, made for reading in a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spikesink.records.interventions import Estimate, InterventionRow, Interventions


def print_interventions(record: Interventions, console: Console | None = None) -> None:
    """The dissociation table, its verdict, quantisation, the KV cache, and what to do."""
    console = console or Console(highlight=False)
    console.print(dissociation_table(record))
    console.print(Text("Verdict  ", "bold").append(record.dissociation.verdict, "bold cyan"))
    for answer in (
        record.dissociation.sinks_need_spikes,
        record.dissociation.spikes_need_sinks,
        record.dissociation.constant_suffices,
    ):
        console.print(Text(f"  {answer.question} ").append(answer.answer, "bold").append(f": {answer.reason}", "dim"))


def dissociation_table(record: Interventions) -> Table:
    """One row per intervention, its controls below it, dim."""
    table = Table(title="Remove one, keep the rest", title_justify="left", box=None, padding=(0, 1))
    table.add_column("intervention")
    for name in ("perplexity", "cost in nats", "sinks", "spike", "plateau"):
        table.add_column(name, justify="right")
    for row in record.interventions:
        name = row.name if row.control_of is None else f"  {row.name.split('/')[1]}"
        style = "dim" if row.control_of else "bold" if row.name == "baseline" else ""
        if not row.applicable:
            table.add_row(name, Text("n/a", "dim"), "", "", "", style=style)
            continue
        table.add_row(name, *_numbers(row), style=style)
    return table


def _numbers(row: InterventionRow) -> tuple[str, ...]:
    assert row.perplexity and row.loss_difference_nats and row.sink_ratio and row.spike is not None
    cost = "" if row.name == "baseline" else interval(row.loss_difference_nats, "+.2f")
    plateau = f"{row.plateau_kept.value:.0%}" if row.plateau_kept else ""
    return (number(row.perplexity.value), cost, f"{row.sink_ratio.value:.0%}", number(row.spike), plateau)


def number(value: float) -> str:
    """Four figures, in powers of ten from a million on."""
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def interval(estimate: Estimate, form: str) -> str:
    """Value [low, high]."""
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
