"""A document in a notebook: what it says, its figures of merit, its key charts as pictures; nothing runs there."""

import base64
from collections.abc import Sequence

import altair as alt
from markupsafe import Markup

from spikesink.errors import InputError, did_you_mean
from spikesink.records.base import Frozen, JsonRecord
from spikesink.report.build import record_document
from spikesink.report.document import Document, Merit, Part, Statement
from spikesink.report.drawing import Figure
from spikesink.report.model import fields_part
from spikesink.report.write import drawn


def display(record: object) -> str | None:
    """HTML of what a record, or a section of one, says; None for what has neither."""
    document = record_document(record)
    if document is not None:
        return str(_document(document))
    if isinstance(record, Frozen) and not isinstance(record, JsonRecord):
        name = getattr(record, "section", None) or type(record).__name__
        return str(Markup("").join(_section(fields_part(name, name.capitalize(), record))))
    return None


def chart(record: object, name: str) -> alt.Chart | alt.LayerChart:
    """One chart of a record, its data in it, by its name or the beginning of it. Raises InputError."""
    document = record_document(record)
    figures = document.figures() if document is not None else []
    for figure in sorted(figures, key=lambda figure: figure.name != name):
        if figure.name.startswith(name):
            return type(figure.chart).from_dict(figure.with_rows(), validate=False)
    known = [figure.name for figure in figures]
    raise InputError(f"No chart called '{name}'{did_you_mean(name, known)}")


def _document(document: Document) -> Markup:
    parts = [_statement(statement) for statement in document.statements if statement.measured]
    parts += [_statement(document.next)] if document.next is not None else []
    for section in document.sections:
        parts += [_picture(figure) for figure in section.figures if figure.key]
        parts += _section(section)
    return Markup("<div>") + Markup("").join(parts) + Markup("</div>")


def _statement(statement: Statement) -> Markup:
    points = Markup("").join(Markup("<li>{}</li>").format(point) for point in statement.points)
    listed = Markup("<ul>{}</ul>").format(points) if points else ""
    return Markup("<p><strong>{}.</strong> {}</p>{}").format(statement.heading, statement.text, listed)


def _section(section: Part) -> list[Markup]:
    """Its figures of merit and short tables, folded away."""
    tables = [table for table in section.tables if table.brief is None or table.brief]
    rows = [_merit(merit) for merit in section.merits]
    for table in tables:
        rows.append(Markup("<tr><th colspan={}>{}</th></tr>").format(len(table.columns), table.caption))
        rows += [_row("th", table.columns), *[_row("td", row) for row in table.rows[: table.most]]]
    if not rows:
        return []
    body = Markup("<table>{}</table>").format(Markup("").join(rows))
    return [Markup("<details><summary>{}</summary>{}</details>").format(section.title, body)]


def _row(tag: str, cells: Sequence[str]) -> Markup:
    cell = Markup(f"<{tag}>{{}}</{tag}>")
    return Markup("<tr>{}</tr>").format(Markup("").join(cell.format(text) for text in cells))


def _merit(merit: Merit) -> Markup:
    return Markup("<tr><td>{}</td><td>{}</td><td>{}</td></tr>").format(merit.label, merit.text, merit.note)


def _picture(figure: Figure) -> Markup:
    picture = base64.b64encode(drawn(figure, "svg")).decode()
    image = Markup('<img src="data:image/svg+xml;base64,{}" alt="{}">').format(picture, figure.alternative)
    return Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(figure.title, image)
