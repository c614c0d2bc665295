"""Claims 2 and 3 from cells: by hand, with every threshold on both sides."""

import pytest

from spikesink.records.study import CellFunction, ClaimVerdict
from spikesink.study.claims import FunctionRules, SeedInterval, judged, over_seeds


class Cell:
    """What is looked at of a cell's record."""

    def __init__(self, **facts):
        self.function = CellFunction(spike_tokens=1.0, **facts) if facts else None


def cells(**columns):
    return [Cell(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def verdict(number, baseline):
    claims = [ClaimVerdict(claim=n, text="", verdict="not tested", evidence="") for n in (1, 2, 3)]
    answers = judged(claims, baseline, FunctionRules())
    assert answers[0] is claims[0], "the others are left alone"
    return answers[number - 1].verdict


def test_the_interval_is_students():
    """1, 2, 6: mean 3, standard deviation sqrt(7), t(0.975, 2) = 4.3027."""
    interval = over_seeds(
        [CellFunction(spike_tokens=1, freeze_nats=x) for x in (1, 2, 6)], "freeze_nats", FunctionRules()
    )
    half = 4.302653 * (7 / 3) ** 0.5
    assert interval == SeedInterval(3, pytest.approx(3 - half, abs=1e-4), pytest.approx(3 + half, abs=1e-4), 3)


@pytest.mark.parametrize("name", ["write_with_mass", "distance_with_mass"])
def test_the_interval_of_a_correlation_ends_at_one(name):
    """0.1, 0.8, 0.9: mean 0.6, half a width of 1.08; with the signs turned the other end."""
    for sign in (1, -1):
        rows = [CellFunction.model_validate({"spike_tokens": 1, name: sign * x}) for x in (0.1, 0.8, 0.9)]
        interval = over_seeds(rows, name, FunctionRules())
        assert interval is not None
        low, high = sorted((sign * interval.low, sign * interval.high))
        assert (low, high) == (pytest.approx(-0.4828, abs=1e-3), 1.0)


@pytest.mark.parametrize(
    ("freeze", "zero", "random", "expected"),
    [
        ((0.01, 0.011, 0.012), (2.0, 2.1, 2.2), (1.0, 1.1, 1.2), "supported"),
        ((0.04, 0.041, 0.042), (2.0, 2.1, 2.2), (1.0, 1.1, 1.2), "undecided"),
        ((0.01, 0.011, 0.012), (2.0, 2.1, 2.2), (0.01, 0.011, 0.012), "undecided"),
        ((0.01, 0.011, 0.012), (0.001, 0.002, 0.003), (1.0, 1.1, 1.2), "contradicted"),
        ((0.2, 0.21, 0.22), (2.0, 2.1, 2.2), (1.0, 1.1, 1.2), "contradicted"),
        ((0.01, 0.011), (2.0, 2.1), (1.0, 1.1), "not tested"),
    ],
)
def test_claim_2(freeze, zero, random, expected):
    columns = {"freeze_nats": freeze, "zero_nats": zero, "random_constant_nats": random}
    known = {"same_context": (0.1,) * len(freeze), "attention_behind": (1,) * len(freeze)}
    assert verdict(2, cells(**columns, **known)) == expected


def test_models_whose_spikes_no_other_token_reads_do_not_speak_for_claim_2():
    """Zero is free there, whatever the model: all but the spike tokens' own predictions stay as they are."""
    claims = [ClaimVerdict(claim=2, text="", verdict="not tested", evidence="")]
    columns = {
        "freeze_nats": (0.0,) * 5, "zero_nats": (0.001, 0.002, 0.001, 2.0, 2.1), "random_constant_nats": (1.0,) * 5,
        "same_context": (0.5, 0.5, 0.5, 0.5, 1.0),
    }  # fmt: skip
    (told,) = judged(claims, cells(**columns, attention_behind=(0, 0, None, 2, 2)), FunctionRules())
    assert told.verdict == "not tested"
    assert told.evidence.startswith("Fewer than 3 of 5 models can be asked: in 2 the spikes are complete only behind ")
    assert "; in 1 it is not known whether either is so; in 1 most spike tokens are one token" in told.evidence
    (told,) = judged(claims, cells(**columns, attention_behind=(1, 1, 1, 0, 0)), FunctionRules())
    assert (told.verdict, told.evidence[-8:]) == ("contradicted", "(n = 3).")


def test_a_constant_that_cannot_cost_anything_does_not_speak_for_claim_2():
    """BOS in front of every sequence: its state is the same in all of them, whatever the model."""
    columns = {
        "freeze_nats": (0.0,) * 4, "zero_nats": (2.0, 2.1, 2.2, 0.01), "random_constant_nats": (1.0, 1.1, 1.2, 0.0)
    }  # fmt: skip
    assert verdict(2, cells(**columns)) == "not tested", "records from before it do not say it"
    columns["attention_behind"] = (1,) * 4
    assert verdict(2, cells(**columns, same_context=(1.0, 0.2, 0.5, 0.51))) == "not tested"
    assert verdict(2, cells(**columns, same_context=(0.1, 0.2, 0.5, 0.51))) == "supported", "of the first three alone"
    assert verdict(2, cells(**columns, same_context=(0.1, 0.2, 0.5, 0.5))) == "undecided"


@pytest.mark.parametrize(
    ("write", "reach", "expected"),
    [
        ((-0.5, -0.49, -0.51), (0.8, 0.81, 0.82), "supported"),
        ((-0.5, -0.49, -0.51), (1.2, 1.21, 1.22), "mixed"),
        ((0.5, 0.49, 0.51), (1.2, 1.21, 1.22), "contradicted"),
        ((-0.5, -0.49, -0.51), (0.7, 1.0, 1.3), "undecided"),
    ],
)
def test_claim_3(write, reach, expected):
    columns = {"write_with_mass": write, "sink_head_distance": reach}
    nearer = (-0.1,) * len(write)
    assert verdict(3, cells(**columns, distance_with_mass=nearer)) == expected
    assert verdict(3, cells(**columns)) == "undecided", "heads without a sink are the control"


@pytest.mark.parametrize(
    ("further", "expected"),
    [((0.5, 0.51, 0.52), "mixed"), ((-0.5, -0.51, -0.52), "supported"), ((-0.5, 0.0, 0.5), "supported")],
)
def test_claim_3_is_not_for_heads_that_look_the_farther_the_more_they_sink(further, expected):
    columns = {"write_with_mass": (-0.5, -0.49, -0.51), "sink_head_distance": (0.8, 0.81, 0.82)}
    assert verdict(3, cells(**columns, distance_with_mass=further)) == expected


def test_cells_without_the_measure_leave_the_claims_as_they_are():
    assert verdict(2, [Cell(), Cell()]) == "not tested"


def test_models_without_spikes_do_not_speak_for_claim_2():
    claims = [ClaimVerdict(claim=2, text="", verdict="not tested", evidence="")]
    columns = {"freeze_nats": (0.01, 0.011, 0.012), "zero_nats": (0.001, 0.002, 0.003)}
    baseline = cells(
        **columns, random_constant_nats=(1.0, 1.1, 1.2), same_context=(0.1, 0.2, 0.3), attention_behind=(1,) * 3
    )
    assert judged(claims, baseline, FunctionRules())[0].verdict == "contradicted"
    (told,) = judged(claims, baseline, FunctionRules(), spikes=False)
    assert told.verdict == "not tested"
    assert told.evidence.startswith("The baseline has no spikes")
