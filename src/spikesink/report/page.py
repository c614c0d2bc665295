"""A document as one self-contained page: no network, no inline handlers, and no text of a record is ever markup."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spikesink.report.bundle import bundle, licences
from spikesink.report.document import Document
from spikesink.report.drawing import DARK, LIGHT, Figure
from spikesink.report.mathml import mathematics

TEMPLATES = Path(__file__).parent / "templates"


def render(page: Document) -> str:
    """The page as HTML."""
    style = _read("page.css")
    scripts = [_safe_script(bundle()), _safe_script(_read("page.js"))]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["mathematics"] = mathematics
    return environment.get_template("page.html").render(
        page=page,
        version=version("spikesink"),
        policy=policy(scripts, style),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        data=Markup(embedded_json(_data(page))),
        licences=licences(),
    )


def policy(scripts: Sequence[str], style: str) -> str:
    """A Content-Security-Policy that lets run what the page was written with, and nothing else."""
    allowed = " ".join(_hash(script) for script in scripts)
    return f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"


def embedded_json(content: Any) -> str:
    """JSON for a script element: no character in it can end the element or start another."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(page: Document) -> dict[str, Any]:
    return {
        "figures": {figure.name: _packed(figure) for figure in page.figures()},
        "looks": {"light": LIGHT, "dark": DARK},
        "heads": page.heads,
    }


def _packed(figure: Figure) -> dict[str, Any]:
    """A specification, and its rows by column name once instead of in every row."""
    columns = list(dict.fromkeys(name for row in figure.rows for name in row))
    return {
        "spec": figure.spec(),
        "columns": columns,
        "rows": [[row.get(name) for name in columns] for row in figure.rows],
    }


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _safe_script(text: str) -> str:
    """What a script element may hold: nothing in it ends the element."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
