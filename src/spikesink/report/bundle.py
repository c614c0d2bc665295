"""Vega, Vega-Lite and Vega-Embed as one script, from what vl-convert carries; and the licences they come under."""

from functools import cache
from pathlib import Path

import altair as alt
import vl_convert


@cache
def bundle() -> str:
    """The JavaScript that draws charts; takes over a second to put together."""
    return vl_convert.javascript_bundle(vl_version=vl_version())


def vl_version() -> str:
    """The version of Vega-Lite that Altair writes for, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def licences() -> str:
    return (Path(__file__).parent / "templates" / "LICENCES.txt").read_text(encoding="utf-8")
