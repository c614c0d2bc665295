"""A budget: every set of measures against a model that was quantised by hand, and the smallest set within."""

import numpy as np
import pytest
import torch
from tiny import spiking, token_ids

from spikesink.access import access
from spikesink.access.linears import find_linears
from spikesink.analyse.budget import IGNORED, KEPT, PER_TOKEN, PREFIX, SMOOTHING, _Search, within_budget
from spikesink.analyse.evaluation import Evaluator, evaluate
from spikesink.analyse.finding import find
from spikesink.analyse.interventions import parse_which
from spikesink.analyse.quantisation import quantisation
from spikesink.analyse.remedies import remedies
from spikesink.analyse.resume import FinishedPasses
from spikesink.errors import InputError
from spikesink.intervene.fold import smoothed
from spikesink.intervene.prefix import prefixed
from spikesink.intervene.quantise import Scheme, quantised_inputs, quantised_weights
from spikesink.measure.sinks import SinkCriteria
from spikesink.records.advice import advice
from spikesink.records.deployment import KvCache, MeasureSet
from spikesink.records.intervals import Estimate

IDS = token_ids(sequences=7, tokens=21)
ONE = Estimate(value=1.0, low=1.0, high=1.0)
NO_CACHE = KvCache(applicable=False)


@pytest.fixture(scope="module")
def measured():
    """An evaluator that runs no set twice, and where int8 does its damage."""
    model = spiking(num_hidden_layers=2)
    targets = find(model, IDS[4:])
    evaluator = Evaluator(access(model), IDS[:4], targets, FinishedPasses(), SinkCriteria())
    return evaluator, quantisation(evaluator, IDS[4:]), *remedies(evaluator, IDS[4:])


def budget_of(measured, nats):
    evaluator, quantised, deployed, arrays = measured
    return within_budget(evaluator, quantised, nats, deployed, arrays)


@pytest.fixture(scope="module")
def nothing_within(measured):
    return budget_of(measured, 1e-9)


def test_every_set_is_tried_before_none_is_chosen(measured, nothing_within):
    assert nothing_within.chosen is None
    sets = [tuple(made.measures) for made in nothing_within.tried]
    assert sets[:6] == [(), (PER_TOKEN,), (SMOOTHING,), (PREFIX,), (IGNORED,), (KEPT,)]
    assert len(sets) == len(set(sets)) == 24, "no set has both a prefix and spike tokens kept"
    assert [len(names) for names in sets] == sorted(len(names) for names in sets)
    assert sets[-2:] == [(PER_TOKEN, SMOOTHING, PREFIX, IGNORED), (PER_TOKEN, SMOOTHING, IGNORED, KEPT)]
    said = advice(True, measured[1], NO_CACHE, nothing_within)
    assert said[0].startswith("Within 1e-09 nats (int8: ") and len(said) > 1
    assert "no set of measures; the best, " in said[0]


def test_a_set_is_run_as_a_whole(nothing_within):
    accessed = access(spiking(num_hidden_layers=2))
    made = next(made for made in nothing_within.tried if made.measures == [PER_TOKEN, IGNORED])
    sites = find_linears(accessed)
    assert {site.name for site in sites if site.block in made.blocks and site.name in made.ignored} == set(made.ignored)
    left = [site for site in sites if site.name not in made.ignored]
    assert 0 < len(left) < len(sites)
    plain = evaluate(accessed, IDS[:4], loss_only=True)
    with quantised_weights(left, 8), quantised_inputs(accessed, left, Scheme(granularity="token")):
        deployed = evaluate(accessed, IDS[:4], loss_only=True)
    cost = float(np.mean(deployed.losses - plain.losses))
    assert cost != 0
    assert made.loss_difference_nats.value == pytest.approx(cost, abs=1e-6)


def test_a_prefix_and_smoothing_are_run_together(measured, nothing_within):
    _, _, deployed, arrays = measured
    accessed = access(spiking(num_hidden_layers=2))
    made = next(made for made in nothing_within.tried if made.measures == [SMOOTHING, PREFIX])
    largest = {
        name.removeprefix("input_max."): torch.from_numpy(each)
        for name, each in arrays.items()
        if name.startswith("input_max.")
    }
    spared = torch.zeros(4, 21 + len(deployed.prefix_ids), dtype=torch.bool)
    spared[:, : len(deployed.prefix_ids)] = True
    sites, plain = find_linears(accessed), evaluate(accessed, IDS[:4], loss_only=True)
    quantised = quantised_inputs(accessed, sites, Scheme(spared_tokens=spared))
    with smoothed(accessed, largest), prefixed(accessed, deployed.prefix_ids), quantised_weights(sites, 8), quantised:
        served = evaluate(accessed, IDS[:4], loss_only=True)
    cost = float(np.mean(served.losses - plain.losses))
    assert made.loss_difference_nats.value == pytest.approx(cost, abs=1e-6)
    assert all(abs(cost - each.loss_difference_nats.value) > 1e-6 for each in nothing_within.tried if each != made)


def test_the_smallest_set_within_is_chosen(measured, nothing_within):
    """A budget that the plain format does not meet, but one measure does; and one that it meets."""
    tried = {tuple(made.measures): made.loss_difference_nats.high for made in nothing_within.tried}
    alone = [tried[names] for names in tried if len(names) == 1]
    assert min(alone) < tried[()]
    budget = budget_of(measured, (min(alone) + tried[()]) / 2)
    assert len(budget.chosen.measures) == 1 and budget.chosen.within
    assert budget.chosen.loss_difference_nats.high <= budget.nats < tried[()]
    assert all(len(made.measures) <= 1 for made in budget.tried)
    generous = budget_of(measured, 20.0)
    assert generous.chosen.measures == [] and len(generous.tried) == 1
    assert advice(True, measured[1], NO_CACHE, generous)[0].endswith("nothing need be done.")
    assert budget_of(measured, None) is None


def test_only_as_many_blocks_are_ignored_as_are_needed():
    """Of eight blocks, three are enough."""
    made = MeasureSet(
        measures=[IGNORED], ignored=["a"], blocks=list(range(2, 18, 2)), perplexity=ONE, loss_difference_nats=ONE,
        within=True,
    )  # fmt: skip

    class Counting(_Search):
        def run(self, measures, ignored):
            return made.model_copy(update={"blocks": made.blocks[:ignored], "within": ignored >= 3})

    tried = Counting(None, [], "down_proj", made.blocks, None, None, 1.0).fewest(made)
    assert [len(each.blocks) for each in tried] == [4, 2, 3]
    assert min((each for each in tried if each.within), key=lambda each: len(each.blocks)).blocks == [2, 4, 6]


def test_what_is_asked_for():
    for nats in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected nats above 0"):
            parse_which("default", nats)
    assert parse_which("remedies", 0.05).parts == ("quantisation", "remedies"), "what the search starts from"
