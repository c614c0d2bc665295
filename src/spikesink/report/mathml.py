"""Equations of captions as mathematics: the document has them in plain characters, the page as MathML."""

import re

from markupsafe import Markup, escape


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


def _equation(found: re.Match[str]) -> str:
    return f'<math alttext="{found.group()}">{BY_FORM[found.group()]}</math>'
