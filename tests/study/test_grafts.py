"""Grafts judged as a study, from the records of results/ and against a naive comparison."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from spikesink.errors import InputError
from spikesink.records.study import StudyRecord
from spikesink.records.training import GraftRecord
from spikesink.study.grafts import study_of

RESULTS = Path(__file__).parent.parent.parent / "results"


@pytest.fixture(scope="module")
def records():
    return [GraftRecord.read(path.parent) for path in sorted((RESULTS / "graft").glob("*/graft.json"))]


def digits(record):
    """The record with seven digits of every number: the last ones are the processor's."""
    return json.loads(record.model_dump_json(), parse_float=lambda text: float(f"{float(text):.7g}"))


@pytest.mark.parametrize("machine", ["", "-cpu"])
def test_the_committed_study_is_what_the_records_say(machine):
    preset = f"SmolLM2-135M-Instruct{machine}"
    records = [GraftRecord.read(path.parent) for path in sorted((RESULTS / f"graft{machine}").glob("*/graft.json"))]
    committed = StudyRecord.read_file(RESULTS / f"grafts-{preset}.json")
    made = study_of(records, preset, committed.rules_version)
    for name in ("preset", "rows", "verdicts", "claims", "rules", "pretrained", "baseline"):
        assert digits(committed)[name] == digits(made)[name], name
    assert made.pretrained == "SmolLM2-135M-Instruct" and made.baseline == "control"


def test_effects_are_those_of_a_welch_test_on_seeds(records):
    made = study_of(records, version=3)
    own = [record for record in records if "arrangement" in record.changed]
    assert len(own) == 3
    (judged,) = (one for one in made.verdicts if one.variant == "arrangement=sandwich")
    effects = {effect.metric: effect for effect in judged.effects}
    healed, control = (np.log([one.points[name].norm_ratio for one in own]) for name in ("healed", "control"))
    ours = effects["norm_ratio"]
    assert ours.ratio == pytest.approx(math.exp(healed.mean() - control.mean()), rel=1e-9)
    naive = stats.ttest_ind(healed, control, equal_var=False).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((math.exp(naive.low), math.exp(naive.high)), rel=1e-9)
    assert (judged.spikes, judged.sinks) == ("falls", "falls")
    row = next(row for row in made.rows if row.variant == "arrangement=sandwich")
    assert row.seeds == [0, 1, 2]
    # First-key importance of a head that attends uniformly, at 64 tokens.
    assert row.values["uniform_importance"] == pytest.approx([np.mean(1 / np.arange(1, 65))] * 3, rel=1e-12)


def test_what_a_short_healing_does_not_bring_back_contradicts_nothing_alone(records):
    """Five replacements speak for claim 1; one of them shows the opposite, as one of three of the finding on sinks."""
    claims = study_of(records).claims
    claim = next(claim for claim in claims if claim.claim == 1)
    assert (claim.verdict, claim.evidence[:31]) == ("undecided", "Against: arrangement=sandwich (")
    finding = next(claim for claim in claims if claim.claim is None)
    assert (finding.verdict, finding.evidence[:26]) == ("undecided", "Against: gate=conditional ")
    few = [record for record in records if record.provenance.settings["recipe"]["data"]["seed"] < 2]
    assert all(one.verdict == "undecided" for one in study_of(few).verdicts)


def test_grafts_that_cannot_be_compared_are_refused(records):
    longer = records[0].model_copy(update={"steps": 7})
    with pytest.raises(InputError, match=r"differ in model, steps.* \(2 kinds of run\)"):
        study_of([longer, *records[1:]])
    provenance = records[0].provenance
    coarser = provenance.model_copy(update={"settings": {**provenance.settings, "precision": "bf16"}})
    with pytest.raises(InputError, match=r"precision.* \(2 kinds of run\)"):
        study_of([records[0].model_copy(update={"provenance": coarser}), *records[1:]])
    alone = {"points": {"healed": records[0].points["healed"]}}
    with pytest.raises(InputError, match="No graft has a healed model and a control"):
        study_of([records[0].model_copy(update=alone)])


def test_two_grafts_of_one_name_and_other_training_are_refused(records):
    """Per head and per channel are one kind by name; another learning rate is another training, healed or not."""
    gates = [record for record in records if "gate" in record.changed]
    changed = copy.deepcopy(gates[0].changed)
    changed["gate"][1]["per"] = "channel"
    with pytest.raises(InputError, match="two grafts 'gate=conditional' with other options"):
        study_of([gates[0].model_copy(update={"changed": changed}), *gates[1:]])
    with pytest.raises(InputError, match="two grafts 'gate=conditional' of seed 0"):
        study_of([gates[0], *gates])
    settings = copy.deepcopy(gates[0].provenance.settings)
    settings["recipe"]["optimiser"]["lr"] *= 2
    faster = gates[0].provenance.model_copy(update={"settings": settings})
    alone = {"provenance": faster, "points": {"healed": gates[0].points["healed"]}}
    with pytest.raises(InputError, match=r"optimiser.* \(2 kinds of run\)"):
        study_of([gates[0].model_copy(update=alone), *gates[1:]])


def test_a_training_that_diverged_is_counted(records):
    kinds = [record for record in records if "gate" in record.changed]
    lost = kinds[0].model_copy(
        update={"points": {"control": kinds[0].points["control"]}, "failed": {"healed": "The loss is nan."}}
    )
    made = study_of([lost, *kinds[1:]])
    row = next(row for row in made.rows if row.variant == "gate=conditional")
    assert (row.diverged, len(row.seeds)) == (1, 2)
    assert made.errors == ["gate=conditional, seed 0: healed: The loss is nan."]
