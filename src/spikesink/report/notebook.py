"""A document in a notebook: what it says, its figures of merit, its key charts as pictures; nothing runs there."""

import base64
from collections.abc import Sequence

from markupsafe import Markup

from spikesink.report.build import record_document
from spikesink.report.document import Document, Merit, Section, Statement
from spikesink.report.drawing import Figure
from spikesink.report.write import drawn


def display(record: object) -> str | None:
    """HTML of what a record says; None for a record of another kind."""
    document = record_document(record)
    return None if document is None else str(_document(document))


def _document(document: Document) -> Markup:
    parts = [_statement(statement) for statement in document.statements if statement.measured]
    for section in document.sections:
        parts += [_picture(figure) for figure in section.figures if figure.key]
        parts += _section(section)
    return Markup("<div>") + Markup("").join(parts) + Markup("</div>")


def _statement(statement: Statement) -> Markup:
    points = Markup("").join(Markup("<li>{}</li>").format(point) for point in statement.points)
    listed = Markup("<ul>{}</ul>").format(points) if points else ""
    return Markup("<p><strong>{}.</strong> {}</p>{}").format(statement.heading, statement.text, listed)


def _section(section: Section) -> list[Markup]:
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
