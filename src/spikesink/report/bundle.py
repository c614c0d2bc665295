"""Vega, Vega-Lite and Vega-Embed as one script, from what vl-convert carries; and the licences they come under."""

from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import altair as alt
import vl_convert

from spikesink.atomic import cache_folder
from spikesink.errors import OutputError
from spikesink.records.files import write_files

SNIPPET = "window.vegaEmbed = vegaEmbed;"


@cache
def bundle() -> str:
    """The JavaScript that draws charts. Putting it together takes longer than the rest of a page, so it is kept."""
    kept = _cache_file()
    with suppress(OSError):
        return kept.read_text(encoding="utf-8")
    made = vl_convert.javascript_bundle(SNIPPET, vl_version())
    with suppress(OutputError):
        write_files(kept.parent, {kept.name: made.encode()}, force=True)
    return made


def _cache_file() -> Path:
    return cache_folder() / f"vega-{version('vl-convert-python')}-{vl_version()}.js"


def vl_version() -> str:
    """The version of Vega-Lite that Altair writes for, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def licences() -> str:
    return (Path(__file__).parent / "templates" / "LICENCES.txt").read_text(encoding="utf-8")
