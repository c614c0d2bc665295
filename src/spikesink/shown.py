"""The base of results that notebooks show as HTML; the package installs the renderer, so records import no report."""

from collections.abc import Callable
from typing import Any, ClassVar


class Shown:
    """Base of results that a notebook shows as HTML and whose charts can be taken one by one."""

    renderer: ClassVar[Callable[[object], str | None] | None] = None
    """From an object to its HTML; None for one that has none."""
    brief: ClassVar[Callable[[object], str | None] | None] = None
    """From a record to what Python's prompt shows of it; None for one that is shown whole."""
    charts: ClassVar[Callable[[object, str], Any] | None] = None
    """From a record and a chart's name to the Altair chart."""

    def _repr_html_(self) -> str | None:
        """What it says and its key charts; None for a record that has none, or where nothing draws."""
        return Shown.renderer(self) if Shown.renderer is not None else None

    def chart(self, name: str) -> Any:
        """One chart of the record as an Altair chart, by the name that `report --figures` gives its file, or the first
        whose name begins so (`lifecycle`).

        Raises InputError for a name that none has; the message lists them.
        """
        assert Shown.charts is not None, "importing spikesink installs it"
        return Shown.charts(self, name)
