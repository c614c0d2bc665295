"""The examples run, and what they show is what the library says."""

import io
import json
import re
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import altair as alt
import nbformat
import numpy as np
import pytest
import run_notebook
import train_with_monitor
from rich.console import Console
from tiny import tiny, token_ids

from spikesink import Anatomy, measures, scan
from spikesink.access import access, full_batch, observing, run
from spikesink.analyse.passes import Criteria, no_progress, run_together
from spikesink.analyse.scan import measure
from spikesink.records import Section
from spikesink.report import write_figures, write_page
from spikesink.report.document import Merit, Part
from spikesink.report.drawing import Figure, drawing
from spikesink.report.terminal import print_record

EXAMPLES = Path(__file__).parent.parent / "examples"
TOO_LARGE = 400_000
"""Bytes of a notebook that is kept with its outputs."""


def printed(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """The perplexities that the last code cell prints, by what stands before them."""
    cell = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    lines = "".join(output["text"] for output in cell.outputs).splitlines()
    return {line[:26].strip(): float(line[26:].replace(",", "")) for line in lines}


def check_dissociation(notebook: nbformat.NotebookNode) -> None:
    text = printed(notebook)
    unchanged = text["unchanged"]
    assert text["spikes zeroed"] > 1000 * unchanged
    assert text["control: other tokens"] == pytest.approx(unchanged, rel=0.02)
    assert text["spikes one constant"] == pytest.approx(unchanged, rel=0.02)


@pytest.mark.embedded
def test_the_notebook_runs_and_shows_a_dissociation():
    check_dissociation(run_notebook.run(EXAMPLES / "quickstart.ipynb"))


def test_the_stored_notebook_has_its_outputs():
    path = EXAMPLES / "quickstart.ipynb"
    codes = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert any("text/html" in output.get("data", {}) for cell in codes for output in cell.outputs)
    assert path.stat().st_size < TOO_LARGE
    # Made with whatever text this Python's version carries, so only what holds for any of them is compared.
    check_dissociation(nbformat.read(path, as_version=4))


def test_both_ways_of_watching_a_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_with_monitor.py", "--steps", "4", "--every", "2", "--out", str(tmp_path)])
    train_with_monitor.main()
    printed_lines = capsys.readouterr().out.splitlines()
    for title, file in (("Trainer", "trainer.jsonl"), ("Loop", "loop.jsonl")):
        readings = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
        assert [reading["step"] for reading in readings] == [2, 4]
        assert readings[0]["spikesink/layer_1/spike"] != readings[1]["spikesink/layer_1/spike"]
        shown = printed_lines[printed_lines.index(title) + 1 :][:2]
        expected = [f"step {r['step']:>4}: spike {r['spikesink/spike']:7.2f}" for r in readings]
        assert all(text in line for text, line in zip(expected, shown, strict=True))


@pytest.fixture
def own_measure():
    """The example, which registers itself; gone from the registry afterwards."""
    import own_measure

    measures.register(own_measure.REWRITTEN)
    yield own_measure
    measures.unregister("rewritten")


class Kept:
    """Every write and residual of one pass."""

    def __init__(self):
        self.writes, self.residuals = {}, {}

    def on_write(self, block, write):
        self.writes[block] = write.clone()

    def on_residual(self, block, hidden):
        self.residuals[block] = hidden.clone()


def test_the_measure_of_the_how_to_by_explicit_loops(own_measure, tmp_path):
    accessed, ids = access(tiny("llama")), token_ids(3, 13)
    kept = Kept()
    with observing(accessed, [kept]):
        run(accessed, full_batch(ids))
    planted = {(0, 0), (2, 5)}
    scanned, _ = measure(accessed, ids, Criteria(), batch_size=2)
    tokens = np.array([[9.0, sequence, position] for sequence, position in planted])
    scanned = replace(scanned, spike=replace(scanned.spike, tokens=tokens))
    steps = own_measure.measure_rewritten(scanned, no_progress)
    section, _ = run_together(scanned, {"rewritten": steps}, no_progress)["rewritten"]
    assert [row.block for row in section.blocks] == [1, 2, 3, 4, 5, 6]
    for row in section.blocks:
        shares = {
            (s, t): float(kept.writes[row.block][s, t].norm() / kept.residuals[row.block][s, t].norm())
            for s in range(3)
            for t in range(13)
        }
        others = [share for place, share in shares.items() if place not in planted]
        assert row.spike == pytest.approx(np.mean([shares[place] for place in planted]), rel=1e-4)
        assert row.other == pytest.approx(np.mean(others), rel=1e-4)
    assert (section.spike_tokens, section.other_tokens) == (2, 37)
    record = scan(accessed, ids, measures=("rewritten",))
    record.save(tmp_path / "run")
    assert isinstance(Anatomy.read(tmp_path / "run").rewritten, own_measure.Rewritten)


def test_the_measure_of_the_how_to_says_where_it_does_not_apply(own_measure):
    record = scan(access(tiny("gpt_neox")), token_ids(), measures=("rewritten",))
    assert not record.rewritten.applicable and "sequential" in record.rewritten.reason


def shown_everywhere(record, folder) -> dict[str, str]:
    """What terminal, page and notebook have of a record."""
    stream = io.StringIO()
    print_record(record, Console(file=stream, width=80, highlight=False))
    record.save(folder)
    page = write_page([folder], folder / "report.html").read_text()
    return {"terminal": stream.getvalue(), "page": page, "notebook": record._repr_html_()}


def test_the_measure_of_the_how_to_is_shown_without_a_line_for_it(own_measure, tmp_path):
    """Registered by a call, it is in terminal, page and notebook: its single values and its rows."""
    record = scan(access(tiny("llama")), token_ids(3, 13), measures=("rewritten",))
    first = f"{record.rewritten.blocks[0].other:.4g}"
    for where, text in shown_everywhere(record, tmp_path / "run").items():
        words = " ".join(re.sub("<[^>]+>", " ", text).split()).lower()
        for said in ("rewritten", "spike tokens", "other tokens", "blocks", first):
            assert said in words, (where, said)


def test_a_measure_of_an_entry_point_with_a_part_of_its_own(monkeypatch, tmp_path, cli_free_cache):
    """As an installed package brings it: found by its group, run by name, drawn by its own part and in --figures."""
    point = EntryPoint("reach", "test_examples:REACH", measures.GROUP)
    monkeypatch.setattr(measures, "entry_points", lambda group: [point] if group == measures.GROUP else [])
    assert measures.parse_names("reach") == ("reach",)
    record = scan(access(tiny("llama")), token_ids(3, 13), measures=("reach",))
    for where, text in shown_everywhere(record, tmp_path / "run").items():
        assert "How far it reaches" in text or where == "terminal"
        assert "39 tokens" in text, where
    files = write_figures([tmp_path / "run"], tmp_path / "figures")
    assert "reach" in {file.stem for file in files}
    assert 'data-figure="reach"' in (tmp_path / "run" / "report.html").read_text()


def test_a_broken_entry_point_stops_nothing(monkeypatch, cli_free_cache):
    point = EntryPoint("gone", "no_such_module:MEASURE", measures.GROUP)
    monkeypatch.setattr(measures, "entry_points", lambda group: [point])
    with pytest.warns(UserWarning, match="'gone' of another package cannot be loaded"):
        assert list(measures.measures()) == list(measures.BUILT_IN)


@pytest.fixture
def cli_free_cache():
    """Entry points are looked up once a process; these tests bring their own."""
    measures._from_entry_points.cache_clear()
    yield
    measures._from_entry_points.cache_clear()


class Reach(Section):
    tokens: int


def measure_reach(scanned, _progress):
    return Reach(tokens=scanned.ids.numel()), {}


def reach_part(record, section):
    chart = drawing().mark_point().encode(alt.X("x:Q"))
    figure = Figure("reach", "Reach", chart, [{"x": 1.0}], "One point.", "One point.")
    merits = [Merit("reach", float(section["tokens"] if isinstance(section, dict) else section.tokens), "tokens")]
    return Part("reach", "How far it reaches", merits=merits, figures=[figure])


REACH = measures.Measure("reach", "How far?", "test_examples:measure_reach", "test_examples:reach_part")
