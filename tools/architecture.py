"""The picture of docs/architecture.md, made from the imports.  Run: python tools/architecture.py

A box is a part of the package with its modules and lines; an arrow says that one part imports another, functions
included. Parts that all others may import stand in one box without arrows.
"""

import ast
from collections import defaultdict
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "spikesink"
TARGET = ROOT / "docs" / "architecture.svg"
ROWS = (
    ("cli",),
    ("survey",),
    ("graft", "study", "report"),
    ("train", "analyse"),
    ("intervene", "measure", "zoo"),
    ("access", "data"),
)
"""From what is built on others to what others are built on."""
WIDTH, BOX, HIGH, GAP, MARGIN = 760, 190, 62, 116, 20
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2430}.n{font-size:11px;fill:#566070}"
    ".b{fill:#f6f7f9;stroke:#8a8f98}.a{stroke:#2b7bba;fill:none;stroke-width:1.3;opacity:.75}"
)


def parts() -> dict[str, list[Path]]:
    """Modules by the part of the package that they are in; single files are parts of their own."""
    rooms = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        rooms[path.relative_to(SOURCE).parts[0].removesuffix(".py")].append(path)
    return dict(rooms)


def imported(path: Path) -> set[str]:
    """Parts that a module imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "spikesink":
            names |= {f"spikesink.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("spikesink.")}


def arrows(files: dict[str, list[Path]]) -> dict[str, set[str]]:
    """The drawn parts that each drawn part imports."""
    drawn = {name for row in ROWS for name in row}
    return {name: {to for path in files[name] for to in imported(path)} & drawn - {name} for name in drawn}


def places() -> dict[str, tuple[float, float]]:
    """Left upper corners of the boxes."""
    centres = {}
    for index, row in enumerate(ROWS):
        step = WIDTH / len(row)
        for column, name in enumerate(row):
            centres[name] = (step * (column + 0.5) - BOX / 2, MARGIN + index * GAP)
    return centres


def box(name: str, paths: list[Path], x: float, y: float, width: float = BOX) -> str:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
    said = f"{len(paths)} module{'s' if len(paths) > 1 else ''}, {lines:,} lines"
    return (
        f'<rect class="b" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{HIGH}" rx="8"/>'
        f'<text x="{x + 12:.0f}" y="{y + 26:.0f}" font-weight="600">{escape(name)}</text>'
        f'<text class="n" x="{x + 12:.0f}" y="{y + 46:.0f}">{said}</text>'
    )


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """From the lower edge of one box to the upper edge of another; from side to side where both are in one row."""
    x1, y1, x2, y2 = start[0] + BOX / 2, start[1] + HIGH, end[0] + BOX / 2, end[1]
    if start[1] == end[1]:
        right = end[0] > start[0]
        x1, x2 = start[0] + (BOX if right else 0), end[0] + (0 if right else BOX)
        y1 = y2 = start[1] + HIGH / 2
    middle = (y1 + y2) / 2
    curve = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}"
    return f'<path class="a" marker-end="url(#h)" d="{curve}"/>'


def picture() -> str:
    files, where = parts(), places()
    ground = sorted(set(files) - set(where) - {"__init__", "__main__"})
    height = MARGIN + len(ROWS) * GAP + HIGH + MARGIN
    drawn = [arrow(where[name], where[to]) for name, targets in sorted(arrows(files).items()) for to in sorted(targets)]
    drawn += [box(name, files[name], *where[name]) for name in where]
    below = [path for name in ground for path in files[name]]
    drawn.append(box(", ".join(ground), below, MARGIN, MARGIN + len(ROWS) * GAP, WIDTH - 2 * MARGIN))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"><style>{STYLE}</style>'
        '<defs><marker id="h" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#2b7bba"/></marker></defs><rect width="100%" height="100%" fill="#fff"/>'
        + "".join(drawn)
        + "</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
