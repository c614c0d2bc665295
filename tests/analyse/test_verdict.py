"""The verdict follows from the stated rules, row by row, undecided included."""

import pytest

from spikesink.analyse.verdict import dissociation
from spikesink.records.interventions import Estimate, InterventionRow


def estimate(value, spread=0.0):
    return Estimate(value=value, low=value - spread, high=value + spread)


def row(name, target, sinks, plateau, *, cost=0.0, control_of=None, spread=0.02):
    return InterventionRow(
        name=name, control_of=control_of, target=target, summary="", loss_difference_nats=estimate(cost, 0.01),
        sink_ratio_kept=estimate(sinks, spread), plateau_kept=estimate(plateau, spread),
    )  # fmt: skip


def judged(*rows, has_spikes=True, has_sinks=True):
    return dissociation(list(rows), has_spikes=has_spikes, has_sinks=has_sinks)


LEAVES = row("cut_amplifier", "spikes", 0.95, 0.05)
TAKES = row("cut_amplifier", "spikes", 0.1, 0.05)
MASK_LEAVES = row("mask_sinks", "sinks", 0.2, 1.0)
MASK_TAKES = row("mask_sinks", "sinks", 0.2, 0.1)


@pytest.mark.parametrize(
    ("on_spikes", "on_sinks", "verdict"),
    [
        (LEAVES, MASK_LEAVES, "dissociated"),
        (TAKES, MASK_TAKES, "coupled"),
        (TAKES, MASK_LEAVES, "sinks need spikes"),
        (LEAVES, MASK_TAKES, "spikes need sinks"),
        (row("zero_spikes", "spikes", 0.7, 0.05), MASK_LEAVES, "undecided"),
        (row("zero_spikes", "spikes", 0.95, 0.4), MASK_LEAVES, "undecided"),
        (LEAVES, row("mask_sinks", "sinks", 0.5, 1.0), "undecided"),
        (row("zero_spikes", "spikes", 0.85, 0.05, spread=0.1), MASK_LEAVES, "undecided"),
    ],
)
def test_verdicts(on_spikes, on_sinks, verdict):
    assert judged(on_spikes, on_sinks).verdict == verdict


def test_one_removal_that_leaves_the_other_is_enough():
    found = judged(LEAVES, row("zero_spikes", "spikes", 0.1, 0.05), MASK_LEAVES)
    assert found.sinks_need_spikes.answer == "no"
    assert found.sinks_need_spikes.evidence == ["cut_amplifier"]


def test_a_control_that_moves_sinks_too_leaves_it_open():
    control = row("cut_amplifier/random_entries", "spikes", 0.3, 1.0, control_of="cut_amplifier")
    assert judged(TAKES, control, MASK_LEAVES).sinks_need_spikes.answer == "undecided"
    harmless = row("cut_amplifier/random_entries", "spikes", 0.97, 1.0, control_of="cut_amplifier")
    assert judged(TAKES, harmless, MASK_LEAVES).sinks_need_spikes.answer == "yes"


def test_nothing_to_dissociate():
    found = judged(MASK_LEAVES, has_spikes=False)
    assert found.verdict == "not applicable"
    assert "no spikes" in found.sentence
    assert judged(LEAVES).spikes_need_sinks.reason == "no intervention on sinks was run"


@pytest.mark.parametrize(
    ("frozen", "zeroed", "random", "answer"),
    [(0.0, 12.0, 5.0, "yes"), (0.3, 12.0, 5.0, "no"), (0.05, 12.0, 5.0, "undecided"), (0.0, 0.0, 5.0, "undecided"),
     (0.0, 12.0, 0.0, "undecided")],
)  # fmt: skip
def test_whether_a_constant_suffices(frozen, zeroed, random, answer):
    rows = [
        row("freeze_spikes", "spikes", 1.0, 1.0, cost=frozen),
        row("zero_spikes", "spikes", 0.7, 0.05, cost=zeroed),
        row("freeze_spikes/random_constant", "spikes", 0.5, 0.2, cost=random, control_of="freeze_spikes"),
    ]
    assert judged(*rows).constant_suffices.answer == answer


def test_the_rules_are_in_the_record():
    rules = judged(LEAVES, MASK_LEAVES).rules
    assert rules["left_min"] == 0.8
    assert len(rules["in_words"]) == 4
