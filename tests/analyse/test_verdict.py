"""The verdict follows from the stated rules, row by row, undecided included."""

import pytest

from spikesink.analyse.dose import judged as swept
from spikesink.analyse.verdict import dissociation, kept
from spikesink.intervene import INTERVENTIONS
from spikesink.records.intervals import Estimate, to_three_digits
from spikesink.records.interventions import InterventionRow


def estimate(value, spread=0.0):
    return Estimate(value=value, low=value - spread, high=value + spread)


def row(name, target, sinks, plateau, *, cost=0.0, control_of=None, spread=0.02, **facts):
    """tokens: share of the spike tokens that are left; by default as much as of the size."""
    kept = {"spike_tokens_kept": plateau if plateau > 0.25 else 0.0, "plateau_ratio_kept": estimate(plateau, spread)}
    return InterventionRow(
        name=name, control_of=control_of, target=target, summary="", loss_difference_nats=estimate(cost, 0.01),
        sink_ratio_kept=estimate(sinks, spread), plateau_kept=estimate(plateau, spread),
        downstream_sink_ratio_kept=estimate(sinks, spread) if target == "spikes" else None, **{**kept, **facts},
    )  # fmt: skip


def control(made, left=0.97, **facts):
    """A control of the row, which leaves this much of what the row does not aim at."""
    shares = (left, 1.0) if made.target == "spikes" else (1.0, left)
    facts = {"strength": made.strength, "cannot_answer": made.cannot_answer, **facts}
    return row(f"{made.name}/random", made.target, *shares, control_of=made.name, **facts)


def twice(made):
    """The row and another like it, so that no answer hangs on one; each with a control that leaves everything."""
    again = made.model_copy(update={"name": f"{made.name} again"})
    return made, control(made), again, control(again)


def judged(*rows, has_spikes=True, has_sinks=True, **known):
    return dissociation(list(rows), has_spikes=has_spikes, has_sinks=has_sinks, **known)


LEAVES = row("cut_amplifier", "spikes", 0.95, 0.05)
TAKES = row("cut_amplifier", "spikes", 0.1, 0.05)
MASK_LEAVES = row("mask_sinks_everywhere", "sinks", 0.2, 1.0)
MASK_TAKES = row("mask_sinks_everywhere", "sinks", 0.2, 0.1)


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
    assert judged(*twice(on_spikes), *twice(on_sinks)).verdict == verdict


def test_one_removal_that_leaves_the_other_is_enough():
    made = judged(*twice(LEAVES), row("zero_spikes", "spikes", 0.1, 0.05), MASK_LEAVES)
    assert made.sinks_need_spikes.answer == "no"
    assert made.sinks_need_spikes.evidence == ["cut_amplifier", "cut_amplifier again"]
    assert (
        "cut_amplifier leaves 95% [93%, 97%] of the sinks, in all blocks 95%, at +0 nats"
        in made.sinks_need_spikes.reason
    )


def test_a_control_that_moves_sinks_too_or_was_not_run_leaves_it_open():
    assert judged(*twice(TAKES), control(TAKES), MASK_LEAVES).sinks_need_spikes.answer == "yes"
    moved = judged(*twice(TAKES), control(TAKES, left=0.3), MASK_LEAVES).sinks_need_spikes
    assert moved.answer == "undecided"
    assert moved.reason.endswith("at +0 nats, but cut_amplifier/random leaves 30%")
    refused = control(TAKES, applicable=False, reason="values that are not finite")
    said = judged(*twice(TAKES), refused, MASK_LEAVES).sinks_need_spikes
    assert said.answer == "undecided"
    assert said.reason.endswith("but cut_amplifier/random was not run (values that are not finite)")
    none = judged(TAKES, TAKES.model_copy(update={"name": "again"}), MASK_LEAVES).sinks_need_spikes
    assert none.answer == "undecided" and "but no control was run" in none.reason


def test_nothing_to_dissociate():
    made = judged(MASK_LEAVES, has_spikes=False)
    assert made.verdict == "not applicable"
    assert "no spikes" in made.sentence
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
    assert judged(*rows, same_context=0.5).constant_suffices.answer == answer
    alike = judged(*rows, same_context=0.514).constant_suffices
    assert alike.answer == "not applicable" and "51% of the spike tokens found are one token" in alike.reason
    assert f"freezing costs {to_three_digits(frozen)} nats" in alike.reason
    assert judged(*rows, attention_behind=1).constant_suffices.answer == answer
    unread = judged(*rows, attention_behind=0, same_context=0.514).constant_suffices
    assert unread.answer == "not applicable" and "complete only behind the last attention block" in unread.reason


def test_the_rules_are_in_the_record():
    rules = judged(LEAVES, MASK_LEAVES).rules
    assert rules["left_min"] == 0.8
    assert len(rules["in_words"]) == 5
    assert "at least 80% of the baseline's" in rules["in_words"][1]
    assert not any("_max" in text or "_min" in text for text in rules["in_words"])


def test_an_answer_that_hangs_on_one_row_is_undecided():
    said = judged(TAKES, control(TAKES), *twice(MASK_LEAVES)).sinks_need_spikes
    assert said.answer == "undecided"
    assert said.sensitivity == {"cut_amplifier left out": "undecided"}
    assert "the rules alone say yes" in said.reason
    assert "cut_amplifier left out" in said.reason


def test_an_answer_that_hangs_on_a_threshold_is_undecided():
    """What is left at a limit of 80 % is not at 90 %."""
    said = judged(*twice(row("cut_amplifier", "spikes", 0.84, 0.05)), *twice(MASK_LEAVES)).sinks_need_spikes
    assert (said.answer, said.sensitivity["left_min 0.9"]) == ("undecided", "undecided")


def test_spikes_are_gone_only_where_tokens_size_and_norm_ratio_are():
    for share, value in (("spike_tokens_kept", 0.5), ("plateau_ratio_kept", 0.6), ("plateau_kept", 0.6)):
        changed = TAKES.model_copy(update={share: estimate(value)})
        answer = judged(*twice(changed), *twice(MASK_LEAVES)).sinks_need_spikes
        assert answer.reason.startswith("no intervention removed the spikes"), share


def test_sinks_are_counted_behind_the_edit():
    """Heads before the edited block cannot change, and would hide that the others did."""
    behind = TAKES.model_copy(
        update={"sink_ratio_kept": estimate(0.7), "downstream_sink_ratio_kept": estimate(0.1, 0.02)}
    )
    said = judged(*twice(behind), *twice(MASK_LEAVES)).sinks_need_spikes
    assert said.answer == "yes"
    assert "leaves 10% [8%, 12%] of the sinks, in all blocks 70%" in said.reason


def test_rows_that_edit_sinks_behind_the_spikes_do_not_answer():
    late = MASK_LEAVES.model_copy(update={"cannot_answer": "it edits sinks after block 2"})
    said = judged(*twice(LEAVES), *twice(late)).spikes_need_sinks
    assert said.answer == "undecided"
    assert "no row can answer" in said.reason
    moved = row("mask_sinks_everywhere", "sinks", 0.9, 1.0, spike_positions={0: 1.0, 1: 0.9, 2: 0.1})
    said = judged(*twice(LEAVES), late, *twice(moved)).spikes_need_sinks
    assert said.answer == "undecided"
    assert "mask_sinks_everywhere leaves 90% of the sink ratio, spikes at position 0 and 1" in said.reason


def test_as_many_spike_tokens_must_be_left_as_size():
    fewer = MASK_LEAVES.model_copy(update={"spike_tokens_kept": estimate(0.3)})
    assert judged(*twice(LEAVES), *twice(fewer)).spikes_need_sinks.answer == "yes"


def test_the_number_of_spike_tokens_has_an_interval():
    """0.9 of them says nothing where it may be 0.6."""
    said = judged(*twice(LEAVES), *twice(MASK_LEAVES.model_copy(update={"spike_tokens_kept": estimate(0.9, 0.3)})))
    assert said.spikes_need_sinks.answer == "undecided"
    assert "leaves 90% [60%, 120%] of the spikes" in said.spikes_need_sinks.reason
    more = MASK_LEAVES.model_copy(update={"spike_tokens_kept": estimate(1.9, 0.5)})
    assert kept(more) == MASK_LEAVES.plateau_kept
    old = InterventionRow.model_validate({**MASK_LEAVES.model_dump(), "spike_tokens_kept": 0.25})
    assert old.spike_tokens_kept == estimate(0.25), "a number in a record of an earlier version"


def levels(name, target, *shares, left=0.97, **facts):
    """A sweep: at each level this much of the other quantity, and a control that leaves so much of it."""
    rows = []
    for level, share in shares:
        pair = (share, 0.05) if target == "spikes" else (0.2, share)
        real = row(name, target, *pair, strength=level, **facts)
        rows += [real, control(real, left=left)]
    return rows


def test_a_sweep_whose_rows_cannot_answer_claims_nothing():
    why = "it edits sinks after block 2"
    sweep = levels("mask_sinks", "sinks", (0.5, 1.0), (1.0, 1.0), cannot_answer=why)
    dose = swept(INTERVENTIONS["mask_sinks"], sweep)
    assert (dose.applicable, dose.stays_to, dose.falls_from) == (True, None, None)
    assert dose.sentence == f"It does not say up to where the spikes stay: {why}."
    said = [row.model_copy(update={"cannot_answer": None}) for row in sweep]
    assert swept(INTERVENTIONS["mask_sinks"], said).stays_to == 1.0


def test_a_sweep_asks_the_controls_of_a_level_whether_it_was_the_spikes():
    made, shares = INTERVENTIONS["shrink_spikes"], ((5.0, 0.95), (10.0, 0.4), (100.0, 0.1))
    assert (swept(made, levels("shrink_spikes", "spikes", *shares)).falls_from) == 10
    assert swept(made, levels("shrink_spikes", "spikes", *shares)).stays_to == 5
    moved = swept(made, levels("shrink_spikes", "spikes", *shares, left=0.3))
    assert moved.falls_from is None
    assert "at the last level tried, a divisor of 100, they fall, but shrink_spikes/random leaves 30%" in moved.sentence
    mixed = levels("shrink_spikes", "spikes", *shares[:2], left=0.3) + levels("shrink_spikes", "spikes", shares[2])
    assert swept(made, mixed).falls_from == 100, "a control of a weaker level says nothing of this one"
    alone = [row for row in levels("shrink_spikes", "spikes", *shares) if row.control_of is None]
    assert swept(made, alone).falls_from is None and "but no control was run" in swept(made, alone).sentence
