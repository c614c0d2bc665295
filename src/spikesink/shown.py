"""What draws itself in a notebook. The package installs who draws, so that records know nothing of reports."""

from collections.abc import Callable
from typing import ClassVar


class Shown:
    """Base of results that a notebook shows as HTML."""

    renderer: ClassVar[Callable[[object], str | None] | None] = None
    """From an object to its HTML; None for one that has none."""

    def _repr_html_(self) -> str | None:
        """What it says and its key charts; None for a record that has none, or where nothing draws."""
        return Shown.renderer(self) if Shown.renderer is not None else None
