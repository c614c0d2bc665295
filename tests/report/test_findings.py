"""The findings of a folder: what each route says of each claim, and which verdict follows."""

from pathlib import Path

import pytest
from tables import summary_markdown

from spikesink.report.build import runs_document
from spikesink.report.findings import ORDER, findings, read_evidence

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
    assert {study.rules_version for study in evidence.studies} == {2}


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


def test_seeds_needed_are_those_of_the_variants_that_speak(evidence):
    """Sandwich alone would be decided sooner than no_bos_loss, of which the finding is."""
    (one,) = [one for one in findings(evidence) if one.text.startswith("Sinks come with the loss on what follows BOS")]
    needed = [
        effect.seeds_needed
        for study in evidence.studies
        for judged in study.verdicts
        for effect in judged.effects
        if judged.variant == "no_bos_loss" and effect.change == "unclear" and effect.metric == "sink_ratio"
    ]
    assert len(needed) == 2 and f"(at this spread {min(needed)} would decide the first)" in one.change


def test_the_models_of_a_shared_baseline_are_counted_once(evidence):
    """Claim 3 is judged by the baseline's cells, which a second study takes from the first."""
    study = next(one for one in evidence.studies if (one.study, one.preset) == ("normalisation", "sinks-700"))
    second = study.model_copy(update={"study": "gating"})
    baseline, *rows = study.rows
    other = baseline.model_copy(update={"values": {**baseline.values, "sink_ratio": [0.5] * len(baseline.seeds)}})
    third = study.model_copy(update={"study": "beyond", "rows": [other, *rows[:1]]})
    by_title = {one.title: one for one in findings(type(evidence)([study, second, third], {}, {}))}
    lines = [line for line in by_title["Claim 3"].lines if line.verdict]
    assert [line.source for line in lines] == [
        "normalisation at sinks-700; gating at sinks-700, the same models", "beyond at sinks-700",
    ]  # fmt: skip
    assert {line.n for line in lines} == {f"{len(baseline.seeds)} seeds"}
    # What variants say is each study's own.
    assert len([line for line in by_title["Claim 1"].lines if line.verdict]) == 3


def test_a_sweep_whose_sinks_fall_early_contradicts_the_finding(evidence):
    name, record = next(iter(evidence.doses.items()))
    early = [dose.model_copy(update={"stays_to": 5.0}) for dose in record.dose]
    changed = type(evidence)(evidence.studies, {name: record.model_copy(update={"dose": early})}, {})
    assert findings(changed)[0].verdict == "contradicted"
    assert findings(changed)[0].title == "Finding"


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
