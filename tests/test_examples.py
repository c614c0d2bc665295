"""The examples run, and what they show is what the library says."""

import json
from pathlib import Path

import nbformat
import pytest
import run_notebook
import train_with_monitor

EXAMPLES = Path(__file__).parent.parent / "examples"
TOO_LARGE = 400_000
"""Bytes of a notebook that is kept with its outputs."""


def printed(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """The perplexities that the last code cell prints, by what stands before them."""
    cell = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    lines = "".join(output["text"] for output in cell.outputs).splitlines()
    return {line[:26].strip(): float(line[26:].replace(",", "")) for line in lines}


@pytest.mark.embedded
def test_the_notebook_runs_and_shows_a_dissociation(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ran = run_notebook.run(EXAMPLES / "quickstart.ipynb")
    found = printed(ran)
    unchanged = found["unchanged"]
    assert found["spikes zeroed"] > 1000 * unchanged
    assert found["control: other tokens"] == pytest.approx(unchanged, rel=0.02)
    assert found["spikes one constant"] == pytest.approx(unchanged, rel=0.02)
    assert printed(nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)) == pytest.approx(found, rel=1e-2)


def test_the_stored_notebook_has_its_outputs_and_is_small():
    path = EXAMPLES / "quickstart.ipynb"
    codes = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert any("text/html" in output.get("data", {}) for cell in codes for output in cell.outputs)
    assert path.stat().st_size < TOO_LARGE


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
