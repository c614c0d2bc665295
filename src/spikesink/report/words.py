"""Numbers and lists as a reader wants them."""

from collections.abc import Sequence


def number(value: float | None, digits: int = 3) -> str:
    """26,671 rather than 2.667e+04; powers of ten only beyond what one reads: 2.9 million, 3e+12."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-3:
        return f"{value:.{max(digits - 1, 1)}g}"
    if size >= 1e6:
        return f"{value / 1e6:.{digits}g} million"
    # Where rounding to so many digits would give an exponent, 999.6 or 131 to two digits, all of the integer is shown.
    return f"{value:,.0f}" if size >= 10 ** min(digits, 3) - 0.5 else f"{value:.{digits}g}"


def signed(value: float) -> str:
    """With its sign, to the digits that matter: +11.3, -0.0005."""
    return f"{value:+.2f}" if abs(value) >= 0.1 else f"{value:+.2g}"


def percent(share: float | None) -> str:
    """A fraction as percent; one decimal where it is not whole."""
    if share is None:
        return "–"
    digits = None if abs(share) < 0.001 else 2 if 0.9995 <= abs(share) < 1 else 1
    text = f"{share * 100:.2g}" if digits is None else f"{share * 100:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def counted(n: int, one: str, many: str | None = None) -> str:
    """1 head, 2 heads, 1,024 heads."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(items: Sequence[object], most: int = 8) -> str:
    """a, b and c; past `most`: a, b and 12 more."""
    shown = [str(item) for item in items[:most]]
    if len(items) > most:
        return f"{', '.join(shown)} and {len(items) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def block_kind(block: int) -> str:
    """Odd blocks are attention, even ones feed-forward, as in the paper."""
    return "attention" if block % 2 else "FFN"


def blocks(numbers: Sequence[int]) -> str:
    """block 24 (FFN); blocks 58 (FFN) and 60 (FFN)."""
    shown = [f"{block} ({block_kind(block)})" for block in numbers]
    return f"block{'s' if len(shown) > 1 else ''} {listed(shown)}" if shown else "no single block"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """0.66 [0.58, 0.73]."""
    if value is None:
        return "–"
    return f"{number(value)} [{number(low)}, {number(high)}]" if low is not None else number(value)
