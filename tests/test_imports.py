"""The arrows of the design: which part may import which, read from the source; and what must not load torch."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "spikesink"
EVERYWHERE = {
    "atomic",
    "bootstrap",
    "errors",
    "lazy",
    "limits",
    "measures",
    "observer",
    "positions",
    "reach",
    "records",
    "requirement",
    "shown",
    "weights",
}
"""`observer` and `weights` hold the small tensor types that the rooms hand each other."""
ALLOWED = {
    "access": set(),
    "measure": set(),
    "data": set(),
    "zoo": set(),
    "train": {"access", "analyse", "data", "zoo"},
    "graft": {"access", "analyse", "data", "intervene", "measure", "train", "zoo"},
    "study": {"access", "analyse", "data", "train", "zoo"},
    "survey": {"access", "analyse", "data", "study", "train", "zoo"},
    "intervene": {"access"},
    "analyse": {"access", "measure", "data", "intervene"},
    "report": set(),
    "cli": {"access", "measure", "data", "intervene", "analyse", "train", "zoo", "study", "survey", "graft", "report"},
    "records": set(),
    "atomic": set(),
    "bootstrap": set(),
    "errors": set(),
    "lazy": set(),
    "limits": set(),
    "measures": set(),
    "observer": set(),
    "positions": set(),
    "shown": set(),
    "reach": set(),
    "requirement": set(),
    "weights": set(),
}


@cache
def modules() -> dict[str, Path]:
    """Every module by its name; a package by its own."""
    parts = {path: ("spikesink", *path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.rglob("*.py")}
    return {".".join(name).removesuffix(".__init__"): path for path, name in parts.items()}


def imported_modules(path: Path, known: dict[str, Path]) -> set[str]:
    """What a module imports anywhere, inside functions and for types too; a name of a package may be a module of it."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= (inside & set(known)) | ({node.module} if inside - set(known) else set())
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    return imported & set(known)


def imported_parts(path: Path) -> set[str]:
    """Parts of the package whose modules a file imports."""
    return {name.split(".")[1] for name in imported_modules(path, modules()) - {"spikesink"}}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows(path):
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part in ("__init__", "__main__"):
        return
    assert part in ALLOWED, f"{part} is new: say in tests/test_imports.py what it may import"
    wrong = imported_parts(path) - ALLOWED[part] - EVERYWHERE - {part}
    assert not wrong, f"{path.name} ({part}) imports {sorted(wrong)}"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_style(path):
    text = path.read_text()
    assert "from __future__ import annotations" not in text
    assert ast.get_docstring(ast.parse(text)), "every module says what it holds"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 60, f"{node.name} does not fit a screen"


BARE_BLOCKS = [
    "access/capture.py",
    "analyse/quantisation.py",
    "intervene/quantise.py",
    "report/amplifier.py",
    "report/sinks.py",
]
"""Once each: an assertion, names of rows, a line of a chart, the ends of an axis."""


def test_a_message_names_a_block_with_its_layer():
    """Everyone indexes model.layers[11].mlp: what says `block {...}` takes it from `placed`, with layer and kind."""
    bare = re.compile(r"\b[Bb]lock \{(?!.*?(placed|place)\b)[^}]*\}")
    lines = [(path, line) for path in sorted(SOURCE.rglob("*.py")) for line in path.read_text().splitlines()]
    assert [str(path.relative_to(SOURCE)) for path, line in lines if bare.search(line)] == BARE_BLOCKS


def test_no_cycles():
    """No module needs itself, however far round. Left out: the package's own file, which hands out what others have."""
    known = modules()
    sorter = TopologicalSorter(
        {name: imported_modules(path, known) - {"spikesink"} for name, path in known.items() if name != "spikesink"}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_reading_a_record_does_not_import_torch():
    code = "import sys, spikesink, spikesink.records, spikesink.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_alone_names_and_reaches_its_parts():
    code = """import spikesink, types
for name in ("scan", "load", "report", "access", "intervene", "graft", "measures", "records"):
    assert name in dir(spikesink), name
assert not any(name.startswith("_") and name != "__version__" for name in dir(spikesink))
assert isinstance(spikesink.report, types.ModuleType) and callable(spikesink.report.write_page)
assert callable(spikesink.intervene.zero_spikes) and callable(spikesink.access.load)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
