"""A document in a terminal: statements, figures of merit, charts in characters, tables as wide as there is room."""

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table as Grid
from rich.text import Text

from spikesink.records import Anatomy
from spikesink.report.build import record_document
from spikesink.report.command import Places, filled
from spikesink.report.document import Document, Merit, Part, Statement, Table, Unmeasured
from spikesink.report.format import counted, number

LABEL_WIDTH = 14
"""Of the left column of every block."""
WIDEST_LABEL = 28
"""Of the left column where nothing but the answer is printed."""
WIDEST = 100
"""Columns of text beyond which lines are hard to read."""
WORDS = 24
"""Narrowest column of words that are longer."""
STYLES = {"strong": "bold", "control": "dim", "dim": "dim", "yes": "green", "no": "red"}
"""Looks of a table's rows, by the class that the page gives them."""


def print_record(record: object, console: Console | None = None, places: Places | None = None) -> None:
    """Print what a record says; places: those in its commands, as far as they are known."""
    document = record_document(record)
    if document is not None:
        print_document(filled(document, places or {}), console)


def print_document(document: Document, console: Console | None = None) -> None:
    """Print a document in a frame no wider than its text can be read in."""
    console = console or Console(highlight=False)
    _print_framed(document, _parts(document, min(console.width, WIDEST) - 4), console)


def print_answer(document: Document) -> None:
    """Print what a document answers, without its evidence; nothing where it answers nothing."""
    if document.statements:
        longest = max(cell_len(statement.heading) for statement in document.statements)
        answer = _statements(document.statements, min(max(longest, LABEL_WIDTH), WIDEST_LABEL))
        _print_framed(document, [answer], Console(highlight=False))


def _print_framed(document: Document, parts: list[RenderableType], console: Console) -> None:
    spaced = [piece for part in parts for piece in (Text(), part)][1:]
    title = Text(document.title.replace("\n", " "), "bold")
    console.print(
        Panel(Group(*spaced), title=title, title_align="left", border_style="cyan", width=min(console.width, WIDEST))
    )


def _parts(document: Document, width: int) -> list[RenderableType]:
    parts: list[RenderableType] = [_statements(document.statements)] if document.statements else []
    if document.merits:
        parts.append(_merits("", document.merits))
    for section in document.sections:
        parts += _section(section, width)
    if document.unmeasured:
        parts.append(_unmeasured(document.unmeasured))
    if document.next is not None:
        parts.append(_statements([document.next]))
    if document.condition:
        parts.append(_block("Conditions", [Text(document.condition, "dim")]))
    return parts


def _grid(label_width: int = LABEL_WIDTH) -> Grid:
    grid = Grid.grid(padding=(0, 1))
    grid.add_column(style="bold", width=label_width)
    # A path that is longer than a line goes on in the next: a command is there to be copied.
    grid.add_column(overflow="fold")
    return grid


def _block(label: str, lines: list[Text]) -> Grid:
    grid = _grid()
    for index, text in enumerate(lines):
        grid.add_row(Text(label if index == 0 else ""), text)
    return grid


def _statements(statements: list[Statement], label_width: int = LABEL_WIDTH) -> Grid:
    grid = _grid(label_width)
    for statement in statements:
        text = Text(statement.text, "" if statement.measured else "dim")
        for point in statement.points:
            text.append(f"{chr(10) if text.plain else ''}• {point}")
        grid.add_row(Text(statement.heading), text)
    return grid


def _merits(label: str, merits: list[Merit] | tuple[Merit, ...]) -> Grid:
    """The label, then a line for each: value, what it is, and its note."""
    grid = _grid()
    for index, merit in enumerate(merits):
        name = merit.label[0].upper() + merit.label[1:] if merit.label[:1].isascii() else merit.label
        text = Text(f"{name}: ").append(merit.text, "bold")
        if merit.note:
            text.append(f"; {merit.note}", "dim")
        grid.add_row(Text(label if index == 0 else ""), text)
    return grid


def _section(section: Part, width: int) -> list[RenderableType]:
    """The parts of a section that a terminal can show; its label stands before the first."""
    parts: list[RenderableType] = []
    label = section.short
    for figure in section.figures:
        if figure.sketch:
            lines = [Text.assemble(*[(text, style) for text, style in line]) for line in figure.sketch]
            for text, line in zip(lines, figure.sketch, strict=True):
                # Words wrap, drawings do not.
                text.no_wrap = any(style != "dim" for _, style in line)
            parts.append(_block(label if not parts else "", lines))
    if section.merits:
        parts.append(_merits(label if not parts else "", list(section.merits)))
    for table in section.tables:
        if table.brief is None or table.brief:
            parts.append(_table(table, width))
    if section.note:
        parts.append(_block(label if not parts else "", [Text(section.note, "dim")]))
    return parts


def _unmeasured(missing: list[Unmeasured]) -> Grid:
    lines = []
    for item in missing:
        lines.append(Text(f"{item.what}: ", "dim").append(item.command, "default"))
    return _block("Not measured", lines)


def _table(table: Table, width: int) -> RenderableType:
    """As a grid where it fits, if need be with intervals on two lines, else each row as a block; the note below."""
    kept = [index for index, name in enumerate(table.columns) if table.brief is None or name in table.brief]
    rows = table.rows[: table.most]
    title = Text(table.caption, "bold")
    tries = [[_narrowest(table, index, rows, split) for index in kept] for split in (False, True)]
    fitting = next((widths for widths in tries if sum(widths) + len(widths) <= width), None)
    body = _stacked(table, kept, rows) if fitting is None else _rows(table, kept, rows, fitting)
    more = len(table.rows) - len(rows)
    notes = [Text(f"{more} more on the page.", "dim")] if more else []
    notes += [Text(table.note, "dim")] if table.note else []
    return Group(title, body, *notes)


def _narrowest(table: Table, index: int, rows: list[list[str]], split: bool) -> int:
    """Width of a column in characters: its numbers stay on one line, intervals too unless `split`; its words wrap."""
    head = max((cell_len(word) for word in table.columns[index].split()), default=0)
    # "+0.16 [+0.1, +0.2]" breaks behind its comma, which goes with what stands before.
    pieces = [row[index].replace(", ", ",\n").split("\n") if split else [row[index]] for row in rows]
    cells = [piece for parts in pieces for piece in parts]
    longest = max([head, *map(cell_len, cells)])
    return min(longest, WORDS) if index < table.words else longest


def _rows(table: Table, kept: list[int], rows: list[list[str]], widths: list[int]) -> Grid:
    grid = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for index, least in zip(kept, widths, strict=True):
        words = index < table.words
        # A longer name of a column wraps: given more room, it would take that from the last column's numbers.
        name, most = Text(table.columns[index]), None if words else least
        justify = "left" if words else "right"
        grid.add_column(name, justify=justify, min_width=least, max_width=most, overflow="fold")
    for place, row in enumerate(rows):
        style = table.style(place)
        cells = [Text(("  " if style == "control" and index == 0 else "") + row[index]) for index in kept]
        grid.add_row(*cells, style=STYLES.get(style, ""))
    return grid


def _stacked(table: Table, kept: list[int], rows: list[list[str]]) -> Grid:
    grid = Grid(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    for _ in range(2):
        grid.add_column(overflow="fold")
    first, *others = kept
    for place, row in enumerate(rows):
        grid.add_row(Text(row[first], "bold"), "", style=STYLES.get(table.style(place), ""))
        for index in others:
            grid.add_row(Text(f"  {table.columns[index]}"), Text(row[index]))
    return grid


def print_prompt(record: Anatomy, texts: list[str]) -> None:
    """One text, its tokens in a row: spike tokens bold red, tokens that sink heads attend to underlined."""
    console = Console(highlight=False)
    spikes = {token.position for token in record.summary.spike_tokens}
    limit = record.sinks.importance_min
    heads = (record.arrays["key_importance"] > limit).sum((0, 1))
    row = Text()
    for position, text in enumerate(texts):
        style = "bold red" if position in spikes else ""
        style += " underline" if heads[position] else ""
        row.append(text.replace("\n", "⏎"), style=style.strip() or None)
        row.append("│", style="dim")
    console.print(row)
    marked = [f"{texts[position]!r} by {counted(int(heads[position]), 'head')}" for position in heads.nonzero()[0]]
    sinks = "; ".join(marked) if marked else f"none above {number(limit)} (a short text needs a higher importance)"
    console.print(Text(f"red = spike token; underlined = sink token: {sinks}", style="dim"))
