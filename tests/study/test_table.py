"""The table against figures computed by hand, and its forms against parsers of their own."""

import csv
import io

import pytest
from study_cases import GRID, base, record

from spikesink.records.study import Effect
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


def test_max_over_median_is_the_one_that_the_rules_ask_for(study):
    """At the block of the largest residual where every variant has it, else that of any block; never both."""
    for variant, seed in (("plain", 0), ("plain", 1), ("plain", 2), ("wide", 1)):
        made = record(variant, seed, spike_max_over_median=41.0, max_over_median=92.0)
        made.write(study.records / f"{variant}-{seed}.json")
    header, body = table.texts(study.summarise())
    assert "max / median of any block" not in header
    assert body[0][header.index("max / median")] == "41.00 ± 0.00 (3)"
    earlier = record("wide", 1, max_over_median=92.0)
    measured = earlier.measured.model_copy(update={"spike_max_over_median": None})
    earlier.model_copy(update={"measured": measured}).write(study.records / "wide-1.json")
    header, body = table.texts(study.summarise())
    assert "max / median" not in header
    assert body[1][header.index("max / median of any block")] == "92.00 (1)"


def test_changes_against_the_baseline(study):
    """A column a metric, a dash for what a variant lacks; claims that nothing tests are one line."""
    made = study.summarise()
    effects = [
        Effect(metric="norm_ratio", ratio=0.123, low=0.0889, high=0.154, separate=True, change="falls"),
        Effect(metric="spike", ratio=0.4, low=0.0, high=1e35, separate=False, change="unclear", seeds_needed=21),
        Effect(metric="perplexity", ratio=1.00123, low=0.99931, high=1.00211, separate=False, change="stays"),
    ]
    wide = made.verdicts[0].model_copy(update={"effects": effects})
    dyt = wide.model_copy(update={"variant": "dyt", "effects": effects[2:], "sentence": "dyt: so (as said), n = 3."})
    rows = [row.model_copy(update={"ceiling": 32.0 if row.variant == "wide" else None}) for row in made.rows]
    rules = {**made.rules, "part_least": 1.0}
    text = table.markdown(made.model_copy(update={"verdicts": [wide, dyt], "rows": rows, "rules": rules}))
    lines = text.splitlines()
    start = lines.index("| over plain | spike | norm ratio beyond 1 | perplexity |")
    assert lines[start + 2 : start + 4] == [
        "| wide | × 0.4 [0, unbounded] unclear, 21 seeds needed | × 0.12 [0.089, 0.15] falls "
        "| × 1.001 [0.9993, 1.002] stays |",
        "| dyt | - | - | × 1.001 [0.9993, 1.002] stays |",
    ]
    assert "(what independent writes of gain 1 reach): wide 32." in text
    assert "- dyt: so (as said), n = 3." in lines
    assert (
        lines.count(
            "- **Not tested**: Claim 1, Claim 4 (spikes), Claim 4 (sinks). No variant of this study speaks for it."
        )
        == 1
    )


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


def test_what_latex_reads_as_its_own_is_escaped_once():
    assert table._tex(r"a_b{#1} \x ~ 5 % ± $") == (r"a\_b\{\#1\} \textbackslash{}x \textasciitilde{} 5 \% $\pm$ \$")
