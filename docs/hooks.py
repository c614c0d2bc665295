"""For mkdocs: lists that follow a paragraph without a blank line; Python-Markdown wants one, Markdown does not."""

import re
from typing import Any

ITEM = re.compile(r"([-*]|\d+\.) ")
FENCE = re.compile(r"\s*(```|~~~)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with a blank line before each such list."""
    lines: list[str] = []
    fenced = in_list = False
    for line in markdown.splitlines():
        starts = not fenced and ITEM.match(line)
        if starts and not in_list and lines and lines[-1].strip():
            lines.append("")
        fenced ^= bool(FENCE.match(line))
        in_list = not fenced and (bool(starts) or (in_list and bool(line.strip())))
        lines.append(line)
    return "\n".join(lines)
