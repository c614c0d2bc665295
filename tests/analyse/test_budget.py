"""A budget: every set of measures against a model that was quantised by hand, and the smallest set within."""

import numpy as np
import pytest
from tiny import spiking, token_ids

from spikesink.access import access
from spikesink.access.linears import find_linears
from spikesink.analyse.budget import IGNORED, KEPT, PER_TOKEN, _Search
from spikesink.analyse.evaluation import evaluate
from spikesink.analyse.interventions import check_budget, dissociate, parse_which
from spikesink.errors import InputError
from spikesink.intervene.quantise import Scheme, quantised_inputs, quantised_weights
from spikesink.records.interventions import Estimate, MeasureSet

IDS = token_ids(sequences=7, tokens=21)
ONE = Estimate(value=1.0, low=1.0, high=1.0)


def recommended(nats):
    model = spiking(num_hidden_layers=2)
    return dissociate(model, IDS, which="none,quantisation", budget=nats, held_out=3).recommendation


@pytest.fixture(scope="module")
def nothing_within():
    return recommended(1e-9)


def test_every_set_is_tried_before_none_is_chosen(nothing_within):
    budget = nothing_within.budget
    assert budget.chosen is None
    sets = [tuple(made.measures) for made in budget.tried]
    assert sets[:2] == [(), (PER_TOKEN,)]
    assert len(sets) == 8
    assert set(sets[4:7]) == {(PER_TOKEN, IGNORED), (PER_TOKEN, KEPT), (IGNORED, KEPT)}
    assert nothing_within.text.startswith("Within 1e-09 nats (int8: ")
    assert "no set of measures; the best, " in nothing_within.text


def test_a_set_is_run_as_a_whole(nothing_within):
    accessed = access(spiking(num_hidden_layers=2))
    made = next(made for made in nothing_within.budget.tried if made.measures == [PER_TOKEN, IGNORED])
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


def test_the_smallest_set_within_is_chosen(nothing_within):
    """A budget that nothing meets with no measure, but some do with one."""
    tried = {tuple(made.measures): made.loss_difference_nats.high for made in nothing_within.budget.tried}
    alone = [tried[names] for names in tried if len(names) == 1]
    assert min(alone) < tried[()]
    advised = recommended((min(alone) + tried[()]) / 2)
    chosen = advised.budget.chosen
    assert len(chosen.measures) == 1 and chosen.within
    assert chosen.loss_difference_nats.high <= advised.budget.nats < tried[()]
    assert all(len(made.measures) <= 1 for made in advised.budget.tried)
    generous = recommended(20.0)
    assert generous.budget.chosen.measures == [] and len(generous.budget.tried) == 1
    assert "nothing need be done" in generous.text


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


def test_refusals():
    for nats in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expected nats above 0"):
            check_budget(nats, parse_which("default"))
    with pytest.raises(InputError, match="add quantisation to --which"):
        check_budget(0.05, parse_which("none"))
