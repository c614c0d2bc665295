"""What `spikesink verify` found, made for reading in a terminal."""

from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spikesink.records import Check, VerificationRecord

HEADS = {
    "sums": "sums",
    "attention": "attention",
    "maps": "maps",
    "padding right": "pad right",
    "padding left": "pad left",
    "long sums": "long sums",
    "long attention": "long att.",
}
"""Column heads by check."""


def print_verification(record: VerificationRecord, console: Console | None = None) -> None:
    """The checks, the largest difference of every layer, and what none of them can say."""
    console = console or Console(highlight=False)
    name = escape(str(record.provenance.model.get("name", record.provenance.model.get("model_type", "model"))))
    title = f"[bold]{name}[/bold] " + ("[green]verified[/green]" if record.verified else "[red]refused[/red]")
    parts = [_checks(record), Text(), _layers(record), Text(), _range(record), Text(), _not_guaranteed(record)]
    style = "cyan" if record.verified else "red"
    console.print(Panel(Group(*parts), title=title, title_align="left", border_style=style))


def _checks(record: VerificationRecord) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for head, align in (("", "left"), ("check", "left"), ("tokens", "right"), ("largest", "right"), ("limit", "right")):
        table.add_column(head, justify=align, header_style="bold")  # type: ignore[arg-type]
    table.add_column("layer", justify="right", header_style="bold")
    for check in record.checks:
        mark = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "[yellow]-[/yellow]"}[check.holds]
        where = "" if check.layer_index is None else str(check.layer_index)
        table.add_row(mark, escape(check.what), str(check.tokens), _number(check.largest), f"{check.limit:.0e}", where)
    return table


def _layers(record: VerificationRecord) -> Table:
    """One row per layer_index, one column per check."""
    shown = [check for check in record.checks if check.by_layer and check.largest is not None]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", justify="right", header_style="bold")
    for check in shown:
        table.add_column(HEADS.get(check.name, check.name), justify="right", header_style="bold", no_wrap=True)
    table.add_column("keys", justify="right", header_style="bold")
    for index, keys in enumerate(record.keys_seen):
        cells = [_cell(check, index) for check in shown]
        table.add_row(str(index), *cells, "no att." if keys is None else str(keys))
    return table


def _cell(check: Check, index: int) -> Text:
    wrong = check.by_layer[index]
    failed = wrong is not None and not wrong <= check.limit
    return Text(_number(wrong), style="bold red" if failed else "")


def _range(record: VerificationRecord) -> Text:
    model = record.provenance.model
    tokens = record.provenance.tokens["longest"]
    return Text(
        f"Differences are relative, by layer_index; keys = most keys that one query saw in {tokens} tokens. "
        f"The largest residual takes {record.range_share:.2g} of {model.get('dtype')}'s range. "
        f"{record.timing.total_s:.0f} s.",
        "dim",
    )


def _not_guaranteed(record: VerificationRecord) -> Text:
    return Text("Not guaranteed: " + "; ".join(record.not_guaranteed) + ".", "dim")


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"
