"""Numbers, blocks, tokens and lists as a reader wants them."""

from collections.abc import Callable, Sequence
from typing import Protocol

from spikesink.positions import placed

NONE = "–"
"""What stands where a number has no meaning or was not measured."""


def number(value: float | None, digits: int = 3) -> str:
    """26,671 rather than 2.667e+04; powers of ten only beyond what one reads: 2.9 million, 3e+12."""
    if value is None:
        return NONE
    size = abs(value)
    if size >= 999.5e6 or 0 < size < 1e-3:
        return f"{value:.{max(digits - 1, 1)}g}"
    if size >= 1e6:
        return f"{value / 1e6:.{digits}g} million"
    # Where rounding to so many digits would give an exponent, 999.6 or 131 to two digits, all of the integer is shown.
    return f"{value:,.0f}" if size >= 10 ** min(digits, 3) - 0.5 else f"{value:.{digits}g}"


def signed(value: float | None) -> str:
    """With its sign, to the digits that matter: +11.34, +0.012, -0.0005; four decimals at most, 0 below."""
    if value is None:
        return NONE
    size = abs(value)
    if size < 0.00005:
        return "0"
    return f"{value:+.2f}" if size >= 0.0995 else f"{value:+.2g}" if size >= 0.001 else f"{value:+.4f}"


def percent(share: float | None) -> str:
    """A fraction as percent; one decimal where it is not whole."""
    if share is None:
        return NONE
    digits = None if abs(share) < 0.001 else 2 if 0.9995 <= abs(share) < 1 else 1
    text = f"{share * 100:.2g}" if digits is None else f"{share * 100:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


UNITS = {"%": percent, "nats": signed}
"""How the values of a unit are written, where it is not `number`."""


def quantity(
    value: float | None, unit: str = "", low: float | None = None, high: float | None = None, digits: int = 3
) -> str:
    """A value with its interval and unit: 74.7 %, +11.3 [+11.29, +11.31] nats, 0.66 [0.58, 0.73]."""
    if value is None:
        return NONE
    write = UNITS.get(unit, lambda one: number(one, digits))
    text = write(value)
    if low is not None and high is not None:
        text = f"{text} [{write(low)}, {write(high)}]"
    return text if unit in ("", "%") else f"{text} {unit}"


class Bounded(Protocol):
    """A value of a record with the bounds of its interval."""

    @property
    def value(self) -> float | None: ...

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def interval(estimate: Bounded | None) -> str:
    """0.66 [0.58, 0.73]."""
    return NONE if estimate is None else quantity(estimate.value, "", estimate.low, estimate.high)


def counted(n: int, one: str, many: str | None = None) -> str:
    """1 head, 2 heads, 1,024 heads."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(items: Sequence[object], most: int = 8) -> str:
    """a, b and c; past `most`: a, b and 12 more."""
    shown = [str(item) for item in items[:most]]
    if len(items) > most:
        return f"{', '.join(shown)} and {len(items) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def blocks(numbers: Sequence[int], place: Callable[[int], str] = placed) -> str:
    """block 24 (layer 11, FFN); blocks 58 (layer 28, FFN) and 60 (layer 29, FFN)."""
    shown = [place(block) for block in numbers]
    return f"block{'s' if len(shown) > 1 else ''} {listed(shown)}" if shown else "no single block"


def shown(text: str) -> str:
    """A token as text in which blanks at its ends and control characters can be seen."""
    visible = printable(text)
    return visible.replace(" ", "␣") if visible != visible.strip() else visible


def quoted(text: str) -> str:
    """A token between quotation marks."""
    return f"“{printable(text)}”"


def printable(text: str) -> str:
    """Text on one line, with control characters written out."""
    plain = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in plain)
