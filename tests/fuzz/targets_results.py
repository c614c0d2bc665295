"""What spikesink itself writes and reads again, on its way changed by a disk, an editor or a stranger."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml
from faults.commands import without_timing
from hypothesis import strategies as st
from study.study_cases import GRID

from fuzz import hostile, seeds
from fuzz.target import Target
from spikesink.errors import InputError


def _bent_json(good: bytes) -> st.SearchStrategy:
    return st.one_of(hostile.bent_tree(json.loads(good)).map(hostile.as_json), hostile.bent_bytes(good))


def _bent(name: str, good: bytes) -> st.SearchStrategy:
    return hostile.bent_safetensors(good) if name.endswith(".safetensors") else _bent_json(good)


def _record(kind: str, file_name: str) -> Target:
    """One of the two files of a record, beside the other as it was."""

    def read(content: bytes, folder: Path) -> None:
        files = seeds.record_files(kind)
        for name, good in files.items():
            (folder / name).write_bytes(content if name == file_name else good)
        seeds.RECORDS[kind].read(folder).to_json()

    return Target(f"{kind} record, {file_name}", lambda: _bent(file_name, seeds.record_files(kind)[file_name]), read)


def _document(kind: str) -> Target:
    def read(content: bytes, folder: Path) -> None:
        (folder / "a.json").write_bytes(content)
        seeds.document(kind).read_file(folder / "a.json").to_json()

    return Target(f"{kind} record", lambda: _bent_json(seeds.document(kind).to_json().encode()), read)


def _page(name: str, files: Callable[[], dict[str, bytes]], file_name: str) -> Target:
    """A record that is well-formed enough to be read must also make a page."""

    def read(content: bytes, folder: Path) -> None:
        from spikesink.report import write_page

        run = folder / "run"
        run.mkdir()
        for other, good in files().items():
            (run / other).write_bytes(content if other == file_name else good)
        write_page([run if len(files()) > 1 else run / file_name], folder / "page.html")

    # Only values are bent: what is no JSON ends where the record is read.
    inputs = lambda: hostile.bent_tree(json.loads(files()[file_name])).map(hostile.as_json)  # noqa: E731
    return Target(f"page of {name}", inputs, read)


def _grid_inputs() -> st.SearchStrategy:
    good = GRID.model_dump(mode="json")
    bent = hostile.bent_tree(good).map(lambda tree: yaml.safe_dump(tree).encode("utf-8", errors="surrogatepass"))
    text = hostile.yaml_text.map(lambda text: text.encode("utf-8", errors="surrogatepass"))
    return st.one_of(bent, bent, text, hostile.bent_bytes(yaml.safe_dump(good).encode()))


def _read_grid(content: bytes, folder: Path) -> None:
    from study.study_cases import base as tiny_base

    from spikesink.study.grid import cells, impossible, load_grid, variant_changes

    (folder / "grid.yaml").write_bytes(content)
    name, grid = load_grid(str(folder / "grid.yaml"))
    base = tiny_base()
    impossible(grid, base)
    for cell in cells(name, grid, base, 2):
        variant_changes(base, grid.variants[cell.variant])


def _resume(content: bytes, folder: Path) -> None:
    """What `train --resume` asks of the marker of its newest checkpoint."""
    from spikesink.train import checkpoints
    from spikesink.train.recipe import load_recipe

    newest = folder / "checkpoints" / "checkpoint-7"
    newest.mkdir(parents=True)
    (newest / "weights").write_bytes(b"12345")
    (newest / checkpoints.MARKER).write_bytes(content)
    newest_whole = checkpoints.newest_undamaged(newest.parent)
    checkpoints.prune(newest.parent, 1)
    checkpoints.discard_newer(newest.parent, newest_whole)
    if newest_whole is None:
        raise InputError("passed over")
    checkpoints.check_recipe(newest_whole, load_recipe("nano"), allow_changed=False)


def _go_on(content: bytes, folder: Path) -> None:
    """Interventions go on from what a killed run left; whatever that says, they find what they find without it."""
    (folder / seeds.partial()[0]).write_bytes(content)
    again = json.loads(seeds.intervened(folder).to_json())
    whole = json.loads(seeds.record_files("interventions")["interventions.json"])
    assert without_timing(again) == without_timing(whole), "another result"


@st.composite
def _bent_lines(draw: st.DrawFn, good: bytes) -> bytes:
    """A line whose tree is bent, or bent bytes."""
    lines = good.splitlines(keepends=True)
    if draw(st.booleans()):
        return draw(hostile.bent_bytes(good))
    index = draw(st.integers(0, len(lines) - 1))
    digest, content = lines[index].split(b" ", 1)
    lines[index] = digest + b" " + hostile.as_json(draw(hostile.bent_tree(json.loads(content)))) + b"\n"
    return b"".join(lines)


TARGETS = (
    *(_record(kind, name) for kind, made in seeds.RECORDS.items() for name in (made.file, made.arrays_file)),
    *(_document(kind) for kind in seeds.DOCUMENTS),
    _page("an anatomy record", lambda: seeds.record_files("anatomy"), "anatomy.json"),
    _page("an interventions record", lambda: seeds.record_files("interventions"), "interventions.json"),
    _page("a study record", lambda: {"study.json": seeds.document("study").to_json().encode()}, "study.json"),
    Target("grid, a YAML file", _grid_inputs, _read_grid),
    Target("train --resume, complete.json", lambda: _bent_json(seeds.marker()), _resume),
    Target("intervene, finished passes", lambda: _bent_lines(seeds.partial()[1]), _go_on),
)
