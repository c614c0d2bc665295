"""The findings of a folder: what each route says of each claim, and which verdict follows."""

from pathlib import Path

import pytest
from tables import summary_markdown

from spikesink.records.study import CellRecord
from spikesink.report.answer import answer
from spikesink.report.build import runs_document
from spikesink.report.evidence import read_evidence
from spikesink.report.findings import ORDER, findings
from spikesink.report.runs import Model
from spikesink.study import verdict

RESULTS = Path(__file__).parent.parent.parent / "results"


@pytest.fixture(scope="module")
def evidence():
    return read_evidence(RESULTS)


def test_every_claim_has_a_verdict_and_contradictions_come_first(evidence):
    listed = findings(evidence)
    assert {one.title for one in listed} >= {"Claim 1", "Claim 2", "Claim 3", "Claim 4 (spikes)", "Claim 4 (sinks)"}
    places = [ORDER.index(one.verdict) for one in listed]
    assert places == sorted(places)
    assert all(one.change and one.paper and one.lines for one in listed)
    assert summary_markdown(evidence).count("\n") == 1 + len(listed)


def test_only_the_newest_rules_speak(evidence):
    assert {study.rules_version for study in evidence.studies} <= set(verdict.RULES)
    assert {study.preset for study in evidence.left_out} == {"nano", "python"}
    assert "gating-nano (version 1), " in runs_document([RESULTS]).lead


def test_runs_are_counted_once(evidence):
    """A baseline in five studies was trained once; grafts are counted as grafts."""
    every = [CellRecord.read_file(path) for path in sorted(RESULTS.glob("*-*/*.json"))]
    titles = {f"{study.study}-{study.preset}" for study in evidence.studies if study.pretrained is None}
    trained = {
        (one.measured.spike, one.measured.perplexity)
        for one in every
        if one.measured is not None and f"{one.study}-{one.preset}" in titles
    }
    assert runs_document([RESULTS]).lead.startswith(f"{len(trained)} training runs under rules that count, ")
    assert len(trained) < sum(len(row.seeds) for study in evidence.studies for row in study.rows)


def test_records_that_do_not_say_who_speaks_name_them(evidence):
    """From before they did, in the evidence: the paper's figures still stand beside them."""
    before = [
        study.model_copy(update={"claims": [claim.model_copy(update={"speak": {}}) for claim in study.claims]})
        for study in evidence.studies
    ]
    old = findings(type(evidence)(before, evidence.doses, evidence.grafts))
    new = findings(type(evidence)(evidence.studies, evidence.doses, evidence.grafts))
    assert {one.text: one.paper for one in old} == {one.text: one.paper for one in new}


def test_parts_that_count_from_1_say_so(evidence):
    """Beside studies whose rules do not."""
    claim = next(one for one in findings(evidence) if one.title == "Claim 1")
    said = {line.source.split()[-1]: line.says for line in claim.lines}
    assert "no cost; norm ratio beyond 1 × 0.12 [" in said["sinks-700-restarts-fresh"]
    assert "(sinks stay; norm ratio × 0.37 [" in said["sinks-700-restarts"]


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["undecided", "supported"], "supported"),
        (["contradicted", "undecided"], "contradicted"),
        (["supported", "contradicted"], "mixed"),
        (["undecided", "undecided"], "undecided"),
    ],
)
def test_a_verdict_follows_from_what_is_decided(evidence, verdicts, expected):
    """One grid says one thing, another another: a contradiction is never hidden behind a support."""
    study = evidence.studies[0]
    claim = next(claim for claim in study.claims if claim.claim == 1)
    said = [
        study.model_copy(update={"claims": [claim.model_copy(update={"verdict": verdict})]}) for verdict in verdicts
    ]
    changed = type(evidence)(said, {}, {})
    (one,) = [one for one in findings(changed) if one.title == "Claim 1"]
    assert one.verdict == expected


def test_the_models_of_a_shared_baseline_are_counted_once(evidence):
    """Claim 3 is judged by the baseline's cells, which a second study takes from the first."""
    study = next(one for one in evidence.studies if (one.study, one.preset) == ("normalisation", "sinks-700"))
    assert [claim.n for claim in study.claims if claim.claim == 3] == [8]
    # As where two of eight cells are from before they measured it.
    asked = [
        claim.model_copy(update={"n": 6, "evidence": claim.evidence.replace("(n = 8)", "(n = 6)")})
        if claim.claim == 3
        else claim
        for claim in study.claims
    ]
    study = study.model_copy(update={"claims": asked})
    second = study.model_copy(update={"study": "gating"})
    baseline, *rows = study.rows
    other = baseline.model_copy(update={"values": {**baseline.values, "sink_ratio": [0.5] * len(baseline.seeds)}})
    third = study.model_copy(update={"study": "beyond", "rows": [other, *rows[:1]]})
    by_title = {one.title: one for one in findings(type(evidence)([study, second, third], {}, {}))}
    lines = [line for line in by_title["Claim 3"].lines if line.verdict]
    assert [line.source for line in lines] == [
        "normalisation at sinks-700; gating at sinks-700, the same models", "beyond at sinks-700",
    ]  # fmt: skip
    few = baseline.model_copy(
        update={"seeds": baseline.seeds[:3], "values": {name: of[:3] for name, of in baseline.values.items()}}
    )
    fewer = study.model_copy(update={"study": "scaling", "rows": [few]})
    one = next(one for one in findings(type(evidence)([fewer, study], {}, {})) if one.title == "Claim 3")
    (line,) = [line for line in one.lines if line.verdict]
    assert line.source == "normalisation at sinks-700; scaling at sinks-700, 3 of the same models"
    assert {line.n for line in lines} == {"6 seeds"} and all("(n = 6)" in line.says for line in lines)
    # What variants say is each study's own.
    assert len([line for line in by_title["Claim 1"].lines if line.verdict]) == 3


@pytest.mark.parametrize(
    ("stays", "falls", "verdict"),
    [
        (10, None, "supported"),
        (5, 10, "contradicted"),
        (None, 5, "contradicted"),
        (5, 20, "undecided"),
        (5, None, "undecided"),
    ],
)
def test_what_a_sweep_says_of_a_spike_a_tenth_of_its_size(evidence, stays, falls, verdict):
    name, record = next(iter(evidence.doses.items()))
    swept = [dose.model_copy(update={"stays_to": stays, "falls_from": falls}) for dose in record.dose]
    changed = {name: record.model_copy(update={"dose": swept})}
    one = next(one for one in findings(type(evidence)(evidence.studies, changed, {})) if "direction" in one.text)
    assert (one.verdict, [line.verdict for line in one.lines]) == (verdict, [verdict])


@pytest.mark.parametrize(
    ("stays", "falls", "left", "verdict"),
    [(1, None, 0.0, "supported"), (0.75, None, 0.0, "undecided"), (None, 0.9, 0.0, "contradicted"),
     (1, None, 0.34, "undecided")],
)  # fmt: skip
def test_what_a_sweep_says_of_sinks_that_are_masked(evidence, stays, falls, left, verdict):
    """Where a third of the sinks or more are left, others have taken their place: that says nothing."""
    record = evidence.doses["python-cpu-0"]
    dose = next(dose for dose in record.dose if dose.target == "sinks")
    last = dose.levels[-1].strength
    kept = {"sink_ratio_kept": dose.levels[0].sink_ratio_kept.model_copy(update={"value": left})}
    levels = [row.model_copy(update=kept) if row.strength == last else row for row in dose.levels]
    swept = [dose.model_copy(update={"levels": levels, "stays_to": stays, "falls_from": falls})]
    made = findings(type(evidence)(evidence.studies, {"one": record.model_copy(update={"dose": swept})}, {}))
    one = next(one for one in made if "spikes do not need sinks" in one.text)
    assert (last, one.verdict, [line.verdict for line in one.lines]) == (1, verdict, [verdict])
    claim = next(one for one in made if one.title == "Claim 4 (sinks)")
    count = int(verdict == "supported"), int(verdict == "contradicted")
    said = "With every sink masked spikes stay in {} of 1 sweep and have fallen in {};".format(*count)
    assert any(line.says.startswith(said) and not line.verdict for line in claim.lines)


def test_models_of_a_study_that_come_out_alike_are_one_line(evidence):
    """From the least to the most that is left in any of them, of rows at the claim's strength."""
    swept = {name: record for name, record in evidence.doses.items() if name.startswith("python-gpu-64-")}
    rows = [
        row
        for record in swept.values()
        for row in record.dose[0].levels
        if row.strength == 10 and row.control_of is None
    ]
    made = findings(type(evidence)(evidence.studies, swept, {}))
    (line,) = next(one for one in made if "direction" in one.text).lines
    assert (line.source, line.size) == ("pre_norm, python-gpu-64 (0, 1, 2, 3, 4), 64 tokens", "5 x 240 sequences")
    left = [row.downstream_sink_ratio_kept for row in rows]
    low, high = (f"{bound(each.value for each in left) * 100:.1f}".removesuffix(".0") for bound in (min, max))
    assert f"divided by 10, {low} % to {high} % of the sinks are left" in line.says
    ends = min(each.low for each in left), max(each.high for each in left)
    assert f"(intervals from {ends[0] * 100:.1f} % to {ends[1] * 100:.1f} %)" in line.says
    ratios = [row.norm_ratio.value for row in rows]
    assert f"norm ratio {min(ratios):.2f} to {max(ratios):.2f}, at +0.0" in line.says
    other = next(one for one in made if "spikes do not need sinks" in one.text)
    assert [line.source for line in other.lines] == [
        "pre_norm, python-gpu-64 (0, 1, 3), 64 tokens", "pre_norm, python-gpu-64 (2, 4), 64 tokens"
    ]  # fmt: skip


def test_sweeps_that_cannot_say_have_no_verdict_and_no_curve(evidence):
    """Of one study with one reason they are one line, whatever they are called."""

    def silent(record):
        dose, *others = record.dose
        levels = [row.model_copy(update={"cannot_answer": "no attention"}) for row in dose.levels]
        said = {"levels": levels, "stays_to": None, "falls_from": None, "sentence": "It does not say."}
        return record.model_copy(update={"dose": [dose.model_copy(update=said), *others]})

    swept = {
        name: silent(record) for name, record in evidence.doses.items() if name in ("python-cpu-0", "python-cpu-2")
    }
    swept["default-text"] = evidence.doses["default-text"]
    made = findings(type(evidence)(evidence.studies, swept, {}))
    one = next(one for one in made if "direction" in one.text)
    assert one.verdict == "supported"
    assert [(line.source, line.size, line.says, line.verdict) for line in one.lines[1:]] == [
        ("pre_norm, python-cpu (0, 2), 64 tokens", "0 of 2 sweeps", "It does not say.", "")
    ]
    assert {row["sweep"] for row in one.figures[-1].rows} == {"default-text"}
    claim = next(one for one in made if one.title == "Claim 4 (spikes)")
    assert any("sinks stay in 1 of 1 sweep and" in line.says for line in claim.lines)


def test_intervals_stand_behind_every_variant_that_the_evidence_names(evidence):
    """Not behind one whose name begins alike; a variant that decides nothing has its own verdict first."""
    study = next(one for one in evidence.studies if one.preset == "sinks-700-gpu" and one.study == "normalisation")
    line = next(
        line
        for one in findings(evidence)
        if one.title == "Claim 1"
        for line in one.lines
        if line.source.endswith("700-gpu")
    )
    assert line.says.startswith("Decides nothing: sandwich (undecided; norm ratio × 0.68 [")
    speaking = {"sandwich", "sandwich_qk", "post_norm", "no_input_norm", "dynamic_tanh_lr_x0.25"}
    verdicts = {judged.variant: judged.verdict for judged in study.verdicts}
    assert line.says.count("norm ratio × ") == len(speaking) < len(verdicts)
    assert all(f"{name} ({verdicts[name]}; norm" in line.says for name in speaking)


def test_the_papers_figures_stand_beside_ours(evidence):
    """Of the variants that speak alone, by table, from the records."""
    paper = {one.title if one.title != "Finding" else one.text: one.paper for one in findings(evidence)}
    gates = next(said for text, said in paper.items() if text.startswith("Gates that see the hidden state"))
    assert gates == (
        "Its table 7, at 7B parameters (sink ratio, spike, perplexity): baseline 46 %, 3,818, 10.1; "
        "conditional_channel 4.5 %, 202, 10; conditional_head 6.4 %, 186, 10.1."
    )
    assert "table 8" in paper["Claim 4 (sinks)"] and "pre_norm" not in paper["Claim 4 (sinks)"]
    healing = next(said for text, said in paper.items() if text.startswith("A short healing"))
    assert healing == "It has no such run."


def test_the_sweeps_are_drawn_over_the_norm_ratio_that_is_left(evidence):
    """Every level of every sweep of the spike, without its controls."""
    one = next(one for one in findings(evidence) if "direction" in one.text)
    drawn = {
        (row["sweep"], row["level"]): row
        for figure in one.figures
        if figure.name == "dose_dominance"
        for row in figure.rows
    }
    expected = {
        (name, f"{row.strength:g}"): (row.norm_ratio.value, row.downstream_sink_ratio_kept.value)
        for name, record in evidence.doses.items()
        for dose in record.dose
        if dose.target == "spikes"
        for row in dose.levels
        if row.control_of is None and not row.cannot_answer
    }
    assert set(drawn) == set(expected) and len(drawn) > 10
    for key, (ratio, left) in expected.items():
        assert (drawn[key]["ratio"], drawn[key]["value"]) == pytest.approx((ratio, left), rel=1e-4)


def test_a_sweep_alone_is_the_answer_and_one_beside_interventions_the_last(evidence):
    alone = evidence.doses["default-text"]
    said = answer(Model("default-text", interventions=alone))
    assert said[0].heading == "How much is enough"
    assert [point.partition(":")[0] for point in said[0].points] == ["shrink_spikes", "mask_sinks_everywhere"]
    assert all(dose.sentence in point for dose, point in zip(alone.dose, said[0].points, strict=True))
    assert answer(Model("wikitext", interventions=evidence.doses["wikitext"]))[-1].heading == "How much is enough"


@pytest.mark.parametrize(
    ("write", "distance", "expected"),
    [
        (-1, -1, "supported"),
        (-1, 0, "supported"),
        (-1, 1, "mixed"),
        (1, 1, "contradicted"),
        (0, 1, "undecided"),
        (1, -1, "mixed"),
    ],
)
def test_claim_3_needs_heads_that_write_less_and_do_not_look_farther_than_those_without_a_sink(
    evidence, write, distance, expected
):
    """Signs of two intervals of the real record; its sink heads look 0.64 of the uniform distance."""
    record = evidence.heads["default-text"]
    section = record.heads
    rows = [row.model_copy(update={"mean": shifted(row.mean, write)}) for row in section.modulation]
    over = [
        row.model_copy(update={"within_layers": shifted(row.within_layers, distance)}) for row in section.correlations
    ]
    changed = record.model_copy(update={"heads": section.model_copy(update={"modulation": rows, "correlations": over})})
    (one,) = (one for one in findings(type(evidence)([], {}, {}, {"text": changed})) if one.title == "Claim 3")
    assert (one.verdict, one.lines[0].verdict) == (expected, expected)
    ratios = {}
    for head in section.heads:
        if head.sink_mass >= record.sinks.importance_min:
            ratios.setdefault(head.block, []).append(head.distance / section.uniform_distance[head.block])
    naive = sum(sum(layer) / len(layer) for layer in ratios.values()) / len(ratios)
    assert f"sink heads look {naive:.3g} [" in one.lines[0].says


def shifted(interval, sign):
    """The interval below 0, above it, or around it."""
    half = (interval.high - interval.low) / 2
    middle = sign * abs(interval.value)
    return interval.model_copy(update={"value": middle, "low": middle - half, "high": middle + half})


def test_the_folder_makes_one_page():
    document = runs_document([RESULTS])
    assert document.kind == "findings" and len(document.sections) == len(document.statements)
    names = [figure.name for figure in document.figures()]
    assert "dose_shrink_spikes" in names and len(names) == len(set(names))
