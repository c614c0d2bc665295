"""The table against figures computed by hand, and its forms against parsers of their own."""

import csv
import io

import pytest
from study_cases import GRID, base, record

from spikesink.study import table
from spikesink.study.run import Study


@pytest.fixture
def study(tmp_path):
    """plain: perplexities 2, 4, 9; wide: one seed and one lost; dyt: nothing."""
    made = Study("s", GRID, base(), tmp_path)
    cells = [record("plain", seed, perplexity=value, sink_ratio=value / 10, spike=1000 * value)
             for seed, value in enumerate((2.0, 4.0, 9.0))]  # fmt: skip
    cells += [record("wide", 1, perplexity=3.0), record("wide", 0, status="diverged")]
    for cell in cells:
        cell.write(made.records / f"{cell.variant}-{cell.seed}.json")
    made.write()
    return made


def test_mean_and_sample_standard_deviation():
    spread = table.spread([2.0, 4.0, 9.0])
    assert (spread.mean, spread.n) == (5.0, 3)
    assert spread.sd == pytest.approx(13**0.5)
    assert table.spread([2.0]).sd is None


def test_text_of_the_table(study):
    header, body = table.texts(study.summarise())
    assert header[:4] == ["variant", "perplexity", "sink ratio", "spike"]
    assert [row[:4] for row in body] == [
        ["plain", "5.000 ± 3.606 (3)", "50.0 ± 36.1 % (3)", "5,000 ± 3,606 (3)"],
        ["wide, 1 diverged", "3.000 (1)", "100.0 % (1)", "1.000 (1)"],
    ]
    assert body[0][-3:] == ["10.1", "46 %", "3,818"]
    assert body[1][-3:] == ["-", "-", "-"]


def test_attention_on_no_token_is_shown_where_there_is_such_a_place(study):
    assert "attention on no token" not in table.texts(study.summarise())[0]
    record("wide", 1, virtual_mass=0.66).write(study.records / "wide-1.json")
    header, body = table.texts(study.summarise())
    place = header.index("attention on no token")
    assert [row[place] for row in body] == ["-", "66.0 % (1)"]


def test_files(study):
    lines = (study.out / "s-tiny.md").read_text().splitlines()
    assert "| plain | 5.000 ± 3.606 (3) |" in lines[6]
    assert any("wide, seed 0: diverged: lost" in line for line in lines)
    rows = list(csv.DictReader(io.StringIO((study.out / "s-tiny.csv").read_text())))
    assert [(row["variant"], row["seed"], float(row["perplexity"])) for row in rows] == [
        ("plain", "0", 2.0), ("plain", "1", 4.0), ("plain", "2", 9.0), ("wide", "1", 3.0),
    ]  # fmt: skip
    tex = (study.out / "s-tiny.tex").read_text()
    assert r"50.0 $\pm$ 36.1 \% (3)" in tex
    assert tex.count(r"\\") == 3
