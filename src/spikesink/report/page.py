"""A document as one self-contained page: no network, no inline handlers, and no text of a record is ever markup."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from spikesink.atomic import cache_folder
from spikesink.errors import OutputError
from spikesink.positions import placed
from spikesink.records.files import write_files
from spikesink.report.document import Document
from spikesink.report.drawing import DARK, LIGHT, Figure


def _mi(name: str) -> str:
    return f"<mi>{name}</mi>"


def _mo(sign: str) -> str:
    return f"<mo>{sign}</mo>"


def _sub(base: str, index: str) -> str:
    return f"<msub>{base}{index}</msub>"


def _sup(base: str, power: str) -> str:
    return f"<msup>{base}{power}</msup>"


def _row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


_H = "<mover><mi>h</mi><mo>~</mo></mover>"
_U, _S = _sub(_mi("U"), _mi("k")), _sub(_mi("S"), _mi("k"))
_STAR, _LAMBDA = _sup(_mi("s"), _mo("*")), _sup(_mi("λ"), _mo("*"))
_TWO, _ALPHA, _T = "<mn>2</mn>", _sub(_mi("α"), _mi("k")), _sup(_H, _mi("T"))
_COS = _row(_mo("("), _STAR, _mo(","), _H, _mo(")"))
_UP, _ROOT = _sup(_U, _mi("T")), f"<msqrt>{_mi('d')}</msqrt>"
_NORM_H = _row(_mo("‖"), _H, _mo("‖"))
_SUM = f"<munder>{_mo('∑')}{_mi('t')}</munder>"
_TOP = _row(_mo("("), _U, _mo("+"), _UP, _mo(")"))

EQUATIONS = {
    "h̃ᵀU_k h̃": _row(_T, _U, _H),
    "S_k = (U_k + U_kᵀ)/2": _row(_S, _mo("="), _TOP, _mo("/"), _TWO),
    "λ*‖h̃‖²cos²(s*, h̃)": _row(_LAMBDA, _sup(_NORM_H, _TWO), _sup(_mi("cos"), _TWO), _COS),
    "α_k = (1/T) Σ_t A[t, k]": _row(
        _ALPHA, _mo("="), f"<mfrac><mn>1</mn>{_mi('T')}</mfrac>", _SUM, _sub(_mi("A"), _row(_mi("t"), _mi("k")))
    ),
    "lambda* sqrt(d) cos(s*, h~)": _row(_LAMBDA, _ROOT, _mi("cos"), _COS),
    "lambda* d cos^2(s*, h~)": _row(_LAMBDA, _mi("d"), _sup(_mi("cos"), _TWO), _COS),
    "||h~|| = sqrt(d)": _row(_NORM_H, _mo("="), _ROOT),
    "‖U_k‖": _row(_mo("‖"), _U, _mo("‖")),
    "‖h̃‖²": _sup(_NORM_H, _TWO),
}
"""Plain form -> MathML."""


BY_FORM = {str(escape(plain)): equation for plain, equation in EQUATIONS.items()}
FORMS = re.compile("|".join(map(re.escape, sorted(BY_FORM, key=len, reverse=True))))


def mathematics(text: str) -> Markup:
    """Text, escaped, with the equations that it holds as MathML."""
    # What a record brings is escaped, and holds no markup where it looks like an equation either.
    return Markup(FORMS.sub(_equation, str(escape(text))))


def _equation(match: re.Match[str]) -> str:
    return f'<math alttext="{match.group()}">{BY_FORM[match.group()]}</math>'


COPIED = Markup('<code>{}</code> <button type="button" class="copy" data-copy="{}" aria-label="Copy: {}">copy</button>')


def copied(text: str, line: str | None) -> Markup:
    """Text, escaped, with the command line, where it holds one, as code that can be copied."""
    shown = escape(text)
    return shown if line is None else Markup(shown.replace(escape(line), COPIED.format(line, line, line)))


SNIPPET = "window.vegaEmbed = vegaEmbed;"


@cache
def bundle() -> str:
    """The JavaScript that draws charts. Putting it together takes longer than the rest of a page, so it is kept."""
    kept = cache_folder() / f"vega-{version('vl-convert-python')}-{vl_version()}.js"
    with suppress(OSError):
        return kept.read_text(encoding="utf-8")
    made = vl_convert.javascript_bundle(SNIPPET, vl_version())
    with suppress(OutputError):
        write_files(kept.parent, {kept.name: made.encode()}, force=True)
    return made


def vl_version() -> str:
    """The version of Vega-Lite that Altair writes for, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def licences() -> str:
    """The licence texts of what the page carries."""
    return (Path(__file__).parent / "templates" / "LICENCES.txt").read_text(encoding="utf-8")


TEMPLATES = Path(__file__).parent / "templates"


def render(page: Document) -> str:
    """The page as HTML."""
    style = _read("page.css")
    scripts = [_safe_script(bundle()), _safe_script(_read("page.js"))]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(mathematics=mathematics, placed=placed, copied=copied)
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
